"""COCO's average precision of results in COCO's format; alone knows the library behind it.

T IoUs, R recalls, K classes, A ranges of area, M numbers of detections an image and class.
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

Floats = npt.NDArray[np.float64]

# COCO's twelve numbers, in COCO's order.
NUMBERS = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
# LVIS's, without COCO's recall of fewer detections.
LVIS_NUMBERS = (
    *NUMBERS[:6],
    "ap_rare",
    "ap_common",
    "ap_frequent",
    "ar300",
    "ar_small",
    "ar_medium",
    "ar_large",
)
# Detections of all classes in an image, best first, that LVIS counts.
LVIS_MAX_DETECTIONS = 300
IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = tuple(step / 100 for step in range(101))
# COCO's detections of a class in an image, best first, which its AP is of.
COCO_MAX_DETECTIONS = 100
# Pairs of a detection and an object, 16 bytes each, whose IoU is kept at a time.
_MOST_PAIRS = 2**25


@dataclass
class Scores:
    """What a comparison of results with ground truth gave."""

    numbers: dict[str, float]  # those of `number_names`, -1 where there is nothing to find
    per_class: Floats  # (K,) AP, -1 likewise
    # (T, R, K), -1 likewise, of all areas and as many detections as count.
    precision: Floats


def ap_name(max_detections: int) -> str:
    """Of the AP that counts so many detections of a class in an image, or COCO's 100 if more."""
    return "ap" if max_detections <= COCO_MAX_DETECTIONS else f"ap_maxdets{max_detections}"


def number_names(max_detections: int) -> list[str]:
    """COCO's names, and of more detections than COCO's 100 those of four more numbers.

    Args:
        max_detections: of a class in an image.
    """
    if max_detections <= COCO_MAX_DETECTIONS:
        return list(NUMBERS)
    more = (f"{name}_maxdets{max_detections}" for name in ("ap", "ap50", "ap75", "ar"))
    return [*NUMBERS, *more]


def score(
    ground_truth: dict[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    iou_type: str,
    category_ids: Sequence[int],
    max_detections: int,
) -> Scores:
    """Compare results with ground truth as pycocotools or LVIS's package does, to the last digit.

    Args:
        ground_truth: in COCO's format; or in LVIS's, whose images have `neg_category_ids`. There
            the file itself says that a class that it does not name was not looked for.
        results: likewise.
        iou_type: `bbox` or `segm`.
        category_ids: of the classes 1..K.
        max_detections: of a class in an image; where it is above COCO's 100 there is an AP of so
            many beside COCO's.
    """
    is_lvis = any("neg_category_ids" in image for image in ground_truth["images"])
    if is_lvis:
        results = _best_of_images(results)
    truth = COCO(ground_truth)
    evaluation = COCOeval_faster(
        truth,
        truth.loadRes(list(results)),
        iou_type,
        print_function=lambda *_: None,
        lvis_style=is_lvis,
    )
    most = max(max_detections, COCO_MAX_DETECTIONS)
    evaluation.params.maxDets = (
        [LVIS_MAX_DETECTIONS] if is_lvis else sorted({1, 10, COCO_MAX_DETECTIONS, most})
    )
    pairs = Counter[int]()
    objects, detections = (
        Counter((each["image_id"], each["category_id"]) for each in entries)
        for entries in (ground_truth["annotations"], results)
    )
    for place in objects.keys() & detections.keys():
        pairs[place[0]] += objects[place] * detections[place]
    _evaluate(evaluation, _groups(evaluation.params.imgIds, pairs))
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    order = [evaluation.params.catIds.index(category) for category in category_ids]
    counted = 0 if is_lvis else 2
    if is_lvis:
        frequencies = {each["id"]: each["frequency"] for each in ground_truth["categories"]}
        of_classes = [frequencies[category] for category in evaluation.params.catIds]
        numbers = _lvis_numbers(precision, recall, of_classes)
    else:
        numbers = _numbers(precision, recall, evaluation.params.maxDets)
    return Scores(
        numbers=numbers,
        per_class=np.array([_mean(precision[:, :, label, 0, counted]) for label in order]),
        precision=precision[:, :, order, 0, -1],
    )


def _best_of_images(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """As many of each image's results as LVIS counts."""
    images: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        images.setdefault(result["image_id"], []).append(result)
    return [
        result
        for of_image in images.values()
        for result in sorted(of_image, key=lambda each: -each["score"])[:LVIS_MAX_DETECTIONS]
    ]


def _groups(image_ids: Sequence[int], pairs: Mapping[int, int]) -> list[list[int]]:
    """Images one after the other, as many together as the memory for their IoUs allows."""
    groups: list[list[int]] = [[]]
    room = _MOST_PAIRS
    for image_id in sorted(image_ids):
        if pairs[image_id] > room and groups[-1]:
            groups.append([])
            room = _MOST_PAIRS
        groups[-1].append(image_id)
        room -= pairs[image_id]
    return groups


def _evaluate(evaluation: COCOeval_faster, groups: Sequence[Sequence[int]]) -> None:
    """Match and accumulate; the library alone would keep the IoUs of all images until the end."""
    evaluation.separate_eval = len(groups) > 1
    if not evaluation.separate_eval:
        evaluation.evaluate()
        evaluation.accumulate()
        return
    num_rows = len(evaluation.params.catIds) * len(evaluation.params.areaRng)
    rows: list[list[Any]] = [[] for _ in range(num_rows)]  # of all images
    for group in groups:
        evaluation.params.imgIds = list(group)
        evaluation.evaluate()
        matches = evaluation._evalImgs_cpp
        for number, row in enumerate(rows):
            row += matches[number * len(group) : (number + 1) * len(group)]
    evaluation.params.imgIds = [image_id for group in groups for image_id in group]
    evaluation._paramsEval = copy.deepcopy(evaluation.params)
    evaluation._evalImgs_cpp = [image for row in rows for image in row]
    evaluation.accumulate()


def _numbers(precision: Floats, recall: Floats, max_detections: Sequence[int]) -> dict[str, float]:
    """Means of precision (T, R, K, A, M) and recall (T, K, A, M), see `number_names`."""
    first, second, coco = range(3)
    values = [_mean(part[..., 0, coco]) for part in (precision, precision[0], precision[5])]
    values += [_mean(precision[..., area, coco]) for area in (1, 2, 3)]
    values += [_mean(recall[..., 0, most]) for most in (first, second, coco)]
    values += [_mean(recall[..., area, coco]) for area in (1, 2, 3)]
    if len(max_detections) > 3:
        parts = (precision, precision[0], precision[5], recall)
        values += [_mean(part[..., 0, -1]) for part in parts]
    return dict(zip(number_names(max_detections[-1]), values, strict=True))


def _lvis_numbers(
    precision: Floats, recall: Floats, frequencies: Sequence[str]
) -> dict[str, float]:
    """Likewise of one number of detections, see `LVIS_NUMBERS`."""
    values = [_mean(part[..., 0, 0]) for part in (precision, precision[0], precision[5])]
    values += [_mean(precision[..., area, 0]) for area in (1, 2, 3)]
    for group in "rcf":
        chosen = [label for label, frequency in enumerate(frequencies) if frequency == group]
        values.append(_mean(precision[:, :, chosen, 0, 0]))
    values += [_mean(recall[..., area, 0]) for area in range(4)]
    return dict(zip(LVIS_NUMBERS, values, strict=True))


def _mean(values: Floats) -> float:
    there = values[values > -1]
    return float(there.mean()) if len(there) else -1.0
