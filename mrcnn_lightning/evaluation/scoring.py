"""COCO's average precision of results in COCO's format; alone knows the library behind it.

T IoUs, R recalls, K classes, A ranges of area, M numbers of detections an image and class,
N detections of all images.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import hotcoco.mask
import numpy as np
import numpy.typing as npt
from hotcoco import Params, StreamingEval

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Entries = list[dict[str, Any]]  # in COCO's format

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
# Pairs of a detection and an object, 8 bytes each, whose IoU is kept at a time.
_MOST_PAIRS = 2**25
# The process in which the library has started threads. A fork of it has none, and would wait.
_threads_of: int | None = None


@dataclass
class Found:
    """Detections of all images in any order, those of an image best first where scores tie."""

    image_ids: Ints  # (N,)
    category_ids: Ints  # (N,)
    scores: Floats  # (N,)
    boxes: Floats  # (N, 4) x, y, width, height
    rles: Entries | None  # N masks as COCO's compressed run lengths, with the image's size

    def __getitem__(self, chosen: Ints) -> "Found":
        """Some of them."""
        return Found(
            self.image_ids[chosen],
            self.category_ids[chosen],
            self.scores[chosen],
            self.boxes[chosen],
            None if self.rles is None else [self.rles[number] for number in chosen],
        )


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
    found: Found,
    *,
    iou_type: str,
    category_ids: Sequence[int],
    max_detections: int,
) -> Scores:
    """Compare detections with ground truth as pycocotools or LVIS's package does, to the last bit.

    Args:
        ground_truth: in COCO's format; or in LVIS's, whose images have `neg_category_ids`. There
            the file itself says that a class that it does not name was not looked for.
        found: of these images.
        iou_type: `bbox` or `segm`.
        category_ids: of the classes 1..K.
        max_detections: of a class in an image; where it is above COCO's 100 there is an AP of so
            many beside COCO's.
    """
    global _threads_of
    if _threads_of not in (None, os.getpid()):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            again = partial(score, iou_type=iou_type, category_ids=category_ids)
            return pool.submit(again, ground_truth, found, max_detections=max_detections).result()
    _threads_of = os.getpid()
    is_lvis = any("neg_category_ids" in image for image in ground_truth["images"])
    most = max(max_detections, COCO_MAX_DETECTIONS)
    counts = [LVIS_MAX_DETECTIONS] if is_lvis else sorted({1, 10, COCO_MAX_DETECTIONS, most})
    precision, recall = _curves(*_numbered(ground_truth, found), iou_type, counts, is_lvis=is_lvis)
    sorted_ids = sorted(category_ids)
    order = [sorted_ids.index(category) for category in category_ids]
    counted = 0 if is_lvis else 2
    if is_lvis:
        frequencies = {each["id"]: each["frequency"] for each in ground_truth["categories"]}
        of_classes = [frequencies[category] for category in sorted_ids]
        numbers = _lvis_numbers(precision, recall, of_classes)
    else:
        numbers = _numbers(precision, recall, counts)
    return Scores(
        numbers=numbers,
        per_class=np.array([_mean(precision[:, :, label, 0, counted]) for label in order]),
        precision=precision[:, :, order, 0, -1],
    )


def _numbered(ground_truth: dict[str, Any], found: Found) -> tuple[dict[str, Any], Found]:
    """The same with ids that the library can hold, which takes those of detections as doubles."""
    image_ids, category_ids = (
        sorted(each["id"] for each in ground_truth[key]) for key in ("images", "categories")
    )
    if max([*image_ids[-1:], *category_ids[-1:]], default=0) < 2**53:
        return ground_truth, found
    images, categories = (
        {each: number for number, each in enumerate(ids)} for ids in (image_ids, category_ids)
    )
    of_lvis = ("neg_category_ids", "not_exhaustive_category_ids")
    truth = {
        "images": [
            image
            | {"id": images[image["id"]]}
            | {key: [categories[each] for each in image[key]] for key in of_lvis if key in image}
            for image in ground_truth["images"]
        ],
        "categories": [
            each | {"id": categories[each["id"]]} for each in ground_truth["categories"]
        ],
        "annotations": [
            each
            | {
                "image_id": images[each["image_id"]],
                "category_id": categories[each["category_id"]],
            }
            for each in ground_truth["annotations"]
        ],
    }
    return truth, replace(
        found,
        image_ids=np.searchsorted(image_ids, found.image_ids),
        category_ids=np.searchsorted(category_ids, found.category_ids),
    )


def _curves(
    ground_truth: dict[str, Any], found: Found, iou_type: str, counts: list[int], *, is_lvis: bool
) -> tuple[Floats, Floats]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M), the classes in the order of their ids."""
    objects = ground_truth["annotations"]
    found = found[np.argsort(found.image_ids, kind="stable")]
    areas = _areas(found, iou_type)
    if is_lvis:
        # LVIS's package takes no notice of what has no area.
        objects = [each for each in objects if each["area"] > 0]
        kept = _best_of_images(found)
        kept = kept[areas[kept] > 0]
        found, areas = found[kept], areas[kept]
    boxes = found.boxes
    if iou_type == "segm":
        # The library takes a detection's area from its box, which is not compared.
        boxes = np.stack([0 * areas, 0 * areas, areas, 0 * areas + 1], axis=1)
    rows = np.column_stack([found.image_ids, boxes, found.scores, found.category_ids])
    params = Params(iou_type)
    params.max_dets = counts
    matches = StreamingEval(ground_truth["categories"], iou_type, lvis_style=is_lvis, params=params)
    for images, true, chosen in _parts(ground_truth["images"], objects, found.image_ids):
        masks: list[dict[str, Any] | list[list[float]]] | None = None
        if found.rles and iou_type == "segm":
            masks = list(found.rles[chosen])
        matches.update(images, true, rows[chosen], segmentation=masks)
    evaluation = matches.finalize()
    evaluation.accumulate()
    curves = evaluation.eval
    assert curves is not None
    return curves["precision"], curves["recall"]


def _areas(found: Found, iou_type: str) -> Floats:
    if iou_type == "bbox":
        return found.boxes[:, 2] * found.boxes[:, 3]
    return np.array(hotcoco.mask.area(found.rles or []), dtype=np.float64)


def _best_of_images(found: Found) -> Ints:
    """As many of each image's detections as LVIS counts, which are in the order of the images."""
    order = np.lexsort([-found.scores, found.image_ids])
    ranks = np.arange(len(order)) - np.searchsorted(found.image_ids, found.image_ids)
    return np.sort(order[ranks < LVIS_MAX_DETECTIONS])


def _parts(
    images: Entries, objects: Entries, found_in: Ints
) -> Iterator[tuple[Entries, Entries, slice]]:
    """As many images, and what is of them, as the memory for their IoUs allows.

    Args:
        images: in COCO's format.
        objects: likewise.
        found_in: (N,) ids of the images of detections, in order.
    """
    images = sorted(images, key=lambda image: image["id"])
    present: dict[int, Entries] = {image["id"]: [] for image in images}
    for each in objects:
        present[each["image_id"]].append(each)
    ends = np.searchsorted(found_in, list(present), side="right").tolist()
    part: Entries = []
    true: Entries = []
    first = last = 0
    room = _MOST_PAIRS
    for image, end in zip(images, ends, strict=True):
        here = present[image["id"]]
        pairs = len(here) * (end - last)
        if pairs > room and part:
            yield part, true, slice(first, last)
            part, true, first = [], [], last
            room = _MOST_PAIRS
        room -= pairs
        part.append(image)
        true.extend(here)
        last = end
    yield part, true, slice(first, last)


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
