"""Which object each candidate box (an anchor or a proposal) stands for.

B images, G padded objects, A candidates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mrcnn_lightning.ops.boxes import iou

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
# Objects compared with all candidates at a time: a crowded image must not cost (B, 375, A) floats.
CHUNK = 8


class Match(NamedTuple):
    """The outcome of matching."""

    objects: Tensor  # (B, A) int64, the one that the candidate overlaps most
    label: Tensor  # (B, A) int64: POSITIVE, NEGATIVE or IGNORED


def match(
    boxes: Tensor,
    valid: Tensor,
    candidates: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    low_quality_matches: bool,
) -> Match:
    """Match candidates to objects by IoU (Faster R-CNN, section 3.1.2).

    A candidate is positive at `positive_iou` or more with any object, negative below
    `negative_iou` with all, ignored in between. With `low_quality_matches`, the candidates that
    tie for an object's best IoU are positive too, whatever it is above zero; their object is
    still the one that they themselves overlap most.

    Args:
        boxes: (B, G, 4).
        valid: (B, G) bool; objects where it is false are not there.
        candidates: (B, A, 4), or (A, 4) when all images share them.
        positive_iou: at or above it a candidate is positive.
        negative_iou: below it a candidate is negative.
        low_quality_matches: whether every object gets its best candidates.
    """
    shape = (len(boxes), candidates.shape[-2])
    best_iou = candidates.new_full(shape, -1.0)
    best_index = torch.zeros(shape, dtype=torch.int64, device=candidates.device)
    is_best_of_an_object = torch.zeros(shape, dtype=torch.bool, device=candidates.device)
    for start in range(0, boxes.shape[1], CHUNK):
        chunk = slice(start, start + CHUNK)
        ious = iou(boxes[:, chunk], candidates)  # (B, CHUNK, A)
        ious = torch.where(valid[:, chunk, None], ious, -1.0)
        chunk_iou, chunk_index = ious.max(dim=1)
        best_index = torch.where(chunk_iou > best_iou, chunk_index + start, best_index)
        best_iou = torch.maximum(chunk_iou, best_iou)
        if low_quality_matches:
            objects_best = ious.amax(dim=2, keepdim=True)
            is_best_of_an_object |= ((ious == objects_best) & (objects_best > 0)).any(dim=1)
    label = torch.full_like(best_index, IGNORED)
    label = torch.where(best_iou < negative_iou, NEGATIVE, label)
    label = torch.where((best_iou >= positive_iou) | is_best_of_an_object, POSITIVE, label)
    return Match(best_index, label)
