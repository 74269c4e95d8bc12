"""Scores of many detections an image against pycocotools."""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_lightning.evaluation import scoring
from mrcnn_lightning.evaluation.scoring import NUMBERS, number_names, score
from tests.evaluation.found import found

SIZE = 400
MOST = 200


def crowded(
    num_images: int, num_objects: int, num_found: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Small squares in two classes, and what a model may have found of them."""
    rng = np.random.default_rng(0)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    truth["categories"] = [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}]
    results = []
    for image_id in range(1, num_images + 1):
        truth["images"].append({"id": image_id, "height": SIZE, "width": SIZE})
        places = rng.integers(0, SIZE - 16, (num_objects, 2))
        sides = rng.integers(6, 60, num_objects)
        for place, side in zip(places, sides, strict=True):
            entry = _square(image_id, place, side)
            entry |= {"id": len(truth["annotations"]) + 1, "area": float(side**2)}
            truth["annotations"].append(entry | {"iscrowd": int(rng.random() < 0.02)})
        for number in rng.integers(0, num_objects, num_found):
            place = (places[number] + rng.normal(0, 2, 2)).clip(0, SIZE - 6)
            # Rounded, so that some scores tie.
            score = round(float(rng.random()), 3)
            results.append(_square(image_id, place, sides[number]) | {"score": score})
    return truth, results


def _square(image_id: int, place: npt.NDArray[Any], side: int) -> dict[str, Any]:
    x, y = (float(each) for each in place)
    box = [x, y, float(side), float(side)]
    rle = pycocotools.mask.frPyObjects(np.array([box]), SIZE, SIZE)[0]
    category = 4 if side % 8 else 9
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": box,
        "segmentation": {"size": [SIZE, SIZE], "counts": rle["counts"].decode()},
    }


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("is_bounded", [False, True])
def test_more_detections_than_cocos(
    iou_type: str, is_bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO's numbers stay what they are; those of all detections stand beside them."""
    truth, results = crowded(3, 150, MOST)
    if is_bounded:
        monkeypatch.setattr(scoring, "_MOST_PAIRS", 150 * MOST)
    key = {"bbox": "bbox", "segm": "segmentation"}[iou_type]
    wanted = {"image_id", "category_id", "score", key}
    results = [{name: each[name] for name in wanted} for each in results]
    peer_truth = COCO()
    peer_truth.dataset = copy.deepcopy(truth)
    peer_truth.createIndex()
    # Both add to the entries.
    peer = COCOeval(peer_truth, peer_truth.loadRes(copy.deepcopy(results)), iou_type)
    peer.params.maxDets = [1, 10, 100, MOST]
    peer.evaluate()
    peer.accumulate()
    peer.summarize()
    ours = score(truth, found(results), iou_type=iou_type, category_ids=[4, 9], max_detections=MOST)
    precision, recall = peer.eval["precision"][..., 0, 3], peer.eval["recall"][..., 0, 3]
    all_counted = [values.mean() for values in (precision, precision[0], precision[5], recall)]
    assert list(ours.numbers) == [*NUMBERS, *number_names(MOST)[-4:]]
    assert list(ours.numbers.values()) == pytest.approx([*peer.stats, *all_counted], abs=1e-9)
    assert ours.numbers[f"ap_maxdets{MOST}"] > 1.1 * ours.numbers["ap"]
    assert np.abs(ours.precision - precision).max() < 1e-9


@pytest.mark.parametrize("max_detections", [30, 100])
def test_fewer_detections_are_scored_as_cocos(max_detections: int) -> None:
    truth, results = crowded(2, 20, 30)
    ours = score(
        truth, found(results), iou_type="bbox", category_ids=[4, 9], max_detections=max_detections
    )
    assert list(ours.numbers) == list(NUMBERS)


@pytest.mark.parametrize("far", [2**53 - 3, 2**62])
def test_ids_may_be_any_of_64_bits(far: int) -> None:
    """The library takes those of detections as doubles, in which neighbours would be one."""
    truth, results = crowded(4, 20, 30)
    expected, moved = {}, copy.deepcopy((truth, results))
    for each in (*moved[0]["annotations"], *moved[1]):
        each["image_id"] += far
        each["category_id"] += far
    for key in ("images", "categories"):
        for each in moved[0][key]:
            each["id"] += far
    for add, (objects, detections) in ((0, (truth, results)), (far, moved)):
        scores = score(
            objects,
            found(detections),
            iou_type="segm",
            category_ids=[9 + add, 4 + add],
            max_detections=100,
        )
        expected[add] = (scores.numbers, scores.per_class.tolist())
    assert expected[0] == expected[far] and expected[0][0]["ap"] > 0.1
