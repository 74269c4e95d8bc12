"""Which classes are taken for which, at one score and one IoU.

N detections and G objects of one image, K classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mrcnn_lightning.ops.boxes import iou
from mrcnn_lightning.results.image_detections import ImageDetections


def confusion_matrix(
    images: Iterable[ImageDetections],
    objects: Mapping[int, Sequence[dict[str, Any]]],
    *,
    category_ids: Sequence[int],
    min_score: float,
    min_iou: float,
) -> npt.NDArray[np.int64]:
    """How often an object of one class was found as another, boxes compared.

    The detections of an image, best first, each take the object of greatest IoU that is still
    there. As in COCO's AP, a crowd takes any number of detections of its class, which then do not
    count: its IoU is the part of the detection that lies within.

    Args:
        images: detections, best first.
        objects: of each image, in COCO's format.
        category_ids: of the classes 1..K.
        min_score: less confident detections are left out.
        min_iou: less is no match.

    Returns:
        (K + 1, K + 1) true class by found class; the last row is what was found where nothing is,
        the last column what was missed.
    """
    num_classes = len(category_ids)
    labels = {category: label for label, category in enumerate(category_ids)}
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    for image in images:
        present = objects.get(image.image_id, [])
        found = int((image.scores >= min_score).sum())
        true = np.array([labels[each["category_id"]] for each in present], dtype=np.int64)
        crowd = np.array([bool(each["iscrowd"]) for each in present], dtype=bool)
        is_missed = ~crowd
        if found and present:
            boxes = torch.tensor([each["bbox"] for each in present], dtype=torch.float64)
            overlaps = _overlaps(image.boxes[:found], boxes, crowd)
        else:
            overlaps = np.zeros((found, len(present)))
        for row, label in zip(overlaps, (image.labels[:found] - 1).tolist(), strict=True):
            free = np.where(is_missed, row, 0.0)
            best = int(free.argmax()) if len(free) else 0
            if len(free) and free[best] >= min_iou:
                matrix[true[best], label] += 1
                is_missed[best] = False
            elif not (crowd & (true == label) & (row >= min_iou)).any():
                matrix[num_classes, label] += 1
        np.add.at(matrix, (true[is_missed], num_classes), 1)
    return matrix


def _overlaps(
    found: torch.Tensor, boxes: torch.Tensor, crowd: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """IoU (N, G) of boxes with objects given as x, y, width, height."""
    corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    values = iou(found.double(), corners).numpy()
    if crowd.any():
        first = torch.maximum(found[:, None, :2], corners[None, :, :2])
        last = torch.minimum(found[:, None, 2:], corners[None, :, 2:])
        inner = (last - first).clamp(min=0).prod(dim=2)
        sides = (found[:, 2:] - found[:, :2]).prod(dim=1, keepdim=True).clamp(min=1e-9)
        values = np.where(crowd, (inner / sides).numpy(), values)
    return values
