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
        if found and present:
            boxes = torch.tensor([each["bbox"] for each in present], dtype=torch.float64)
            overlaps = _overlaps(image.boxes[:found], boxes, crowd)
        else:
            overlaps = np.zeros((found, len(present)))
        guessed = image.labels[:found].numpy() - 1
        taken, is_missed = _matched(np.where(crowd, -1, overlaps), min_iou)
        is_match = taken >= 0
        np.add.at(matrix, (true[taken[is_match]], guessed[is_match]), 1)
        in_crowd = (crowd & (true == guessed[:, None]) & (overlaps >= min_iou)).any(axis=1)
        wrong = guessed[~is_match & ~in_crowd]
        matrix[num_classes, :num_classes] += np.bincount(wrong, minlength=num_classes)
        is_missed &= ~crowd
        matrix[:num_classes, num_classes] += np.bincount(true[is_missed], minlength=num_classes)
    return matrix


def _matched(
    overlaps: npt.NDArray[np.float64], min_iou: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The object that each detection takes, (N,), -1 if none, and whether one is left, (G,)."""
    rows, columns = np.nonzero(overlaps >= min_iou)
    order = np.lexsort([columns, -overlaps[rows, columns], rows])
    taken, is_left = [-1] * len(overlaps), [True] * overlaps.shape[1]
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if taken[row] < 0 and is_left[column]:
            taken[row], is_left[column] = column, False
    return np.array(taken, dtype=np.int64), np.array(is_left, dtype=np.bool_)


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
