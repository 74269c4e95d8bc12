"""Which object each candidate box (an anchor or a proposal) stands for.

B images, G padded objects, A candidates.
"""

import math
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from mrcnn_lightning.ops.boxes import iou

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
# Objects compared with all candidates at a time: a crowded image must not cost (B, 375, A) floats.
CHUNK = 8


class BestMatches(StrEnum):
    """Which of the candidates that an object overlaps most are positive, whatever their IoU."""

    ALL = "all"  # that tie
    FIRST = "first"
    NONE = "none"


class Match(NamedTuple):
    """The outcome of matching."""

    matched_gt: Tensor  # (B, A) int64, the object that the candidate overlaps most
    label: Tensor  # (B, A) int64: POSITIVE, NEGATIVE or IGNORED


def match(
    boxes: Tensor,
    valid: Tensor,
    candidates: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    best_matches: BestMatches,
    strictly_above: bool = False,
    eligible: Tensor | None = None,
) -> Match:
    """Match candidates to objects by IoU (Faster R-CNN, section 3.1.2).

    A candidate is positive at `positive_iou` or more with any object, negative below
    `negative_iou` with all, ignored in between. An object's best candidates may be positive
    whatever their IoU is above zero; their object is still the one that they themselves overlap
    most.

    Args:
        boxes: (B, G, 4).
        valid: (B, G) bool; objects where it is false are not there.
        candidates: (B, A, 4), or (A, 4) when all images share them.
        positive_iou: at or above it a candidate is positive.
        negative_iou: below it a candidate is negative.
        best_matches: which of an object's best candidates are positive.
        strictly_above: whether a candidate at `positive_iou` is not positive yet.
        eligible: (B, A) bool, or None for all; other candidates are ignored, and no object's best.
    """
    is_on_host = candidates.device.type == "cpu" and not torch.compiler.is_compiling()
    compare = _compare_touching if is_on_host else _compare_all
    best_iou, best_index, is_best_of_an_object = compare(
        boxes, valid, candidates, eligible, best_matches
    )
    label = torch.full_like(best_index, IGNORED)
    label = torch.where(best_iou < negative_iou, NEGATIVE, label)
    is_positive = best_iou > positive_iou if strictly_above else best_iou >= positive_iou
    label = torch.where(is_positive | is_best_of_an_object, POSITIVE, label)
    if eligible is not None:
        label = torch.where(eligible, label, IGNORED)
    return Match(best_index, label)


class _Comparison(NamedTuple):
    best_iou: Tensor  # (B, A), -1 where no object counts
    best_index: Tensor  # (B, A) int64, the first of the objects with that IoU
    is_best_of_an_object: Tensor  # (B, A) bool


def _nothing_compared(boxes: Tensor, candidates: Tensor) -> _Comparison:
    best_iou = candidates.new_full((len(boxes), candidates.shape[-2]), -1.0)
    index = torch.zeros_like(best_iou, dtype=torch.int64)
    return _Comparison(best_iou, index, torch.zeros_like(index, dtype=torch.bool))


def _compare_all(
    boxes: Tensor,
    valid: Tensor,
    candidates: Tensor,
    eligible: Tensor | None,
    best_matches: BestMatches,
) -> _Comparison:
    """Every object with every candidate, without the host looking at any number."""
    best_iou, best_index, is_best_of_an_object = _nothing_compared(boxes, candidates)
    for start in range(0, boxes.shape[1], CHUNK):
        chunk = slice(start, start + CHUNK)
        ious = iou(boxes[:, chunk], candidates)  # (B, CHUNK, A)
        counts = (
            valid[:, chunk, None] if eligible is None else valid[:, chunk, None] & eligible[:, None]
        )
        ious = torch.where(counts, ious, -1.0)
        chunk_iou, chunk_index = ious.max(dim=1)
        best_index = torch.where(chunk_iou > best_iou, chunk_index + start, best_index)
        best_iou = torch.maximum(chunk_iou, best_iou)
        is_best_of_an_object |= _best_of_an_object(ious, best_matches)
    return _Comparison(best_iou, best_index, is_best_of_an_object)


def _compare_touching(
    boxes: Tensor,
    valid: Tensor,
    candidates: Tensor,
    eligible: Tensor | None,
    best_matches: BestMatches,
) -> _Comparison:
    """As `_compare_all`, neighbours among the objects only with the candidates that touch them."""
    compared = _nothing_compared(boxes, candidates)
    for image, own_boxes in enumerate(boxes):
        own = candidates if candidates.dim() == 2 else candidates[image]
        x1, y1, x2, y2 = own.t().contiguous()
        best_iou, best_index, is_best = (part[image] for part in compared)
        objects = torch.nonzero(valid[image])[:, 0]
        if len(objects):
            counts = slice(None) if eligible is None else eligible[image]
            best_iou[counts], best_index[counts] = 0.0, objects[0]
        for chunk in _neighbours(own_boxes, objects):
            left, top = own_boxes[chunk, :2].amin(0).tolist()
            right, bottom = own_boxes[chunk, 2:].amax(0).tolist()
            touches = (x1 < right) & (x2 > left) & (y1 < bottom) & (y2 > top)
            near = torch.nonzero(touches if eligible is None else touches & eligible[image])[:, 0]
            if not len(near):
                continue
            ious = iou(own_boxes[chunk], own[near])  # (CHUNK, near)
            near_iou, first = ious.max(dim=0)
            number, before, last = chunk[first], best_iou[near], best_index[near]
            is_better = (near_iou > before) | ((near_iou == before) & (number < last))
            best_iou[near] = torch.where(is_better, near_iou, before)
            best_index[near] = torch.where(is_better, number, last)
            is_best[near] |= _best_of_an_object(ious[None], best_matches)[0]
    return compared


def _neighbours(boxes: Tensor, objects: Tensor) -> list[Tensor]:
    """The numbers `objects` of boxes (G, 4), some that lie beside each other at a time."""
    if len(objects) <= CHUNK:
        return [objects] if len(objects) else []
    x, y = (boxes[objects, :2] + boxes[objects, 2:]).unbind(1)
    num_bands = math.ceil(math.sqrt(len(objects) / CHUNK))
    band = ((y - y.min()) / (y.max() - y.min() + 1) * num_bands).floor()
    order = (band * (x.max() - x.min() + 1) + x - x.min()).argsort()
    return [chunk.sort().values for chunk in objects[order].split(CHUNK)]


def _best_of_an_object(ious: Tensor, best_matches: BestMatches) -> Tensor:
    """(B, A) bool, of IoUs (B, G, A)."""
    if best_matches == BestMatches.NONE:
        return torch.zeros_like(ious[:, 0], dtype=torch.bool)
    best, first = ious.max(dim=2, keepdim=True)  # the first of those that tie
    if best_matches == BestMatches.ALL:
        return ((ious == best) & (best > 0)).any(dim=1)
    return torch.zeros_like(ious, dtype=torch.bool).scatter_(2, first, best > 0).any(dim=1)


def overlaps(boxes: Tensor, valid: Tensor, candidates: Tensor, *, min_iou: float) -> Tensor:
    """(B, A) bool: candidates that overlap any of the valid boxes by `min_iou` or more.

    Args:
        boxes: (B, G, 4).
        valid: (B, G) bool.
        candidates: (B, A, 4), or (A, 4) when all images share them.
        min_iou: at or above it they overlap.
    """
    shape = (len(boxes), candidates.shape[-2])
    found = torch.zeros(shape, dtype=torch.bool, device=candidates.device)
    for start in range(0, boxes.shape[1], CHUNK):
        chunk = slice(start, start + CHUNK)
        ious = iou(boxes[:, chunk], candidates)  # (B, CHUNK, A)
        found |= ((ious >= min_iou) & valid[:, chunk, None]).any(dim=1)
    return found
