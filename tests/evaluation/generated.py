"""Small made-up sets with everything that COCO's rules treat apart."""

from typing import Any

import numpy as np
import pycocotools.mask

# Squares whose areas are COCO's limits, and beside them.
_SIDES = (0, 1, 2, 3, 5, 8, 13, 31, 32, 33, 95, 96, 97, 130)


def generated(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]], str, int]:
    """Ground truth, results, the IoU's type and the detections that count of an image."""
    rng = np.random.default_rng(seed)
    iou_type = ("bbox", "segm")[seed % 2]
    height, width = (int(each) for each in rng.integers(8, 140, 2))
    ids = rng.choice([0, 1, 2, 5, 90, 1203, 2**31 + 7], rng.integers(1, 5), replace=False).tolist()
    image_ids = rng.choice(
        [0, 3, 4, 10, 77, 139, 581929, 2**40 + 1], rng.integers(1, 6), replace=False
    )
    truth: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": str(i)} for i in ids],
    }
    results: list[dict[str, Any]] = []
    whole = bool(rng.random() < 0.6)  # coordinates: IoUs tie, and equal thresholds
    levels = int(rng.choice([1, 3, 10, 1000]))  # scores tie
    most = int(rng.choice([2, 12, 40, 130], p=[0.3, 0.4, 0.2, 0.1]))
    for image_id in image_ids.tolist():
        truth["images"].append({"id": image_id, "height": height, "width": width})
        boxes = []
        for _ in range(int(rng.integers(0, 10))):
            box = _box(rng, height, width, whole, boxes)
            boxes.append(box)
            entry = {
                "image_id": image_id,
                "category_id": int(rng.choice(ids)),
                "iscrowd": int(rng.random() < 0.2),
            }
            entry |= _extent(rng, box, iou_type, height, width, entry["iscrowd"])
            entry["area"] = float(
                rng.choice(
                    [box[2] * box[3], 32.0**2, 96.0**2, 0.0, 1e5**2, 1e10 + 1, 1023.9999, 9216.5],
                    p=[0.65, 0.08, 0.08, 0.05, 0.04, 0.02, 0.04, 0.04],
                )
            )
            truth["annotations"].append(entry)
        for _ in range(int(rng.integers(0, most + 1))):
            box = _box(rng, height, width, whole, boxes)
            entry = {
                "image_id": image_id,
                "category_id": int(rng.choice(ids)),
                "score": float(rng.integers(0, levels + 1)) / levels,
            }
            results.append(entry | _extent(rng, box, iou_type, height, width, False))
    numbers = rng.permutation(len(truth["annotations"])) + 1
    for entry, number in zip(truth["annotations"], numbers.tolist(), strict=True):
        entry["id"] = number
    if rng.random() < 0.3:
        rng.shuffle(results)
    return truth, results, iou_type, int(rng.choice([1, 100, 110, 120]))


def _box(
    rng: np.random.Generator, height: int, width: int, whole: bool, others: list[list[float]]
) -> list[float]:
    kind = rng.random()
    if others and kind < 0.6:
        box = np.array(others[rng.integers(len(others))])
        box = box + rng.choice([0, 0, 0, 1, 2, 3]) * rng.normal(0, 1, 4)
    else:
        sides = rng.choice(_SIDES, 2) if kind < 0.8 else rng.choice(_SIDES, 1).repeat(2)
        box = np.array([rng.uniform(-3, width), rng.uniform(-3, height), *sides])
    if whole:
        box = box.round()
    box[2:] = box[2:].clip(0)
    return [float(each) for each in box]


def _extent(
    rng: np.random.Generator, box: list[float], iou_type: str, height: int, width: int, crowd: bool
) -> dict[str, Any]:
    if iou_type == "bbox":
        return {"bbox": box}
    x, y, w, h = box
    kind = rng.random()
    if crowd or kind < 0.5:
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[max(int(y), 0) : max(int(y + h), 0), max(int(x), 0) : max(int(x + w), 0)] = 1
        if kind < 0.3:
            mask &= (rng.random(mask.shape) < 0.9).astype(np.uint8)
        rle = pycocotools.mask.encode(np.asfortranarray(mask))
    else:
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        if kind > 0.8:
            corners += [x + w / 2, y + h / 2]
        rle = pycocotools.mask.frPyObjects([corners], height, width)[0]
    return {"segmentation": {"size": [height, width], "counts": rle["counts"].decode()}}


def federated(truth: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same as LVIS says it: some classes were looked for, and some not everywhere."""
    rng = np.random.default_rng(seed)
    classes = [category["id"] for category in truth["categories"]]
    for category in truth["categories"]:
        category["frequency"] = "rcf"[rng.integers(3)]
    for image in truth["images"]:
        own = [each for each in truth["annotations"] if each["image_id"] == image["id"]]
        present = {each["category_id"] for each in own}
        absent = [each for each in classes if each not in present and rng.random() < 0.5]
        image["neg_category_ids"] = absent
        image["not_exhaustive_category_ids"] = [
            each for each in [*sorted(present), *absent] if rng.random() < 0.3
        ]
    for entry in truth["annotations"]:
        entry["iscrowd"] = 0
    return truth
