"""Boxes (x1, y1, x2, y2) in absolute pixels, and the deltas that correct them.

B images, N or G boxes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A delta enlarges a side by no more than this, so that exp() stays finite (as in Detectron).
MAX_LOG_SCALE = math.log(1000.0 / 16)
# The side that an empty box counts for when it is encoded: padding then gives finite deltas.
MIN_SIDE = 1e-6


def area(boxes: Tensor) -> Tensor:
    """Areas (..., N) of boxes (..., N, 4)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every pair: (..., G, 4) and (..., N, 4) to (..., G, N)."""
    x1, y1, x2, y2 = boxes.unsqueeze(-2).unbind(-1)  # (..., G, 1)
    other_x1, other_y1, other_x2, other_y2 = others.unsqueeze(-3).unbind(-1)  # (..., 1, N)
    width = (torch.minimum(x2, other_x2) - torch.maximum(x1, other_x1)).clamp_(min=0)
    height = (torch.minimum(y2, other_y2) - torch.maximum(y1, other_y1)).clamp_(min=0)
    overlap = width.mul_(height)  # (..., G, N)
    return overlap / (area(boxes).unsqueeze(-1) + area(others).unsqueeze(-2) - overlap)


def clip(boxes: Tensor, windows: Tensor) -> Tensor:
    """Boxes (B, N, 4) cut to each image's window (B, 4)."""
    low, high = windows[:, None, :2], windows[:, None, 2:]
    return boxes.clamp(min=torch.cat([low, low], dim=2), max=torch.cat([high, high], dim=2))


def has_area(boxes: Tensor) -> Tensor:
    """(..., N) bool: both sides of the boxes (..., N, 4) are more than nothing."""
    return (boxes[..., 2:] > boxes[..., :2]).all(-1)


def is_at_least(boxes: Tensor, min_side: float) -> Tensor:
    """(..., N) bool: both sides of the boxes (..., N, 4) are `min_side` pixels or more."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_side).all(-1)


def _centers_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides


def encode(boxes: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """Deltas (dx, dy, dw, dh) that turn anchors into boxes; all are (..., 4).

    Each delta is multiplied by its weight (R-CNN, appendix C; weights as in Fast R-CNN's code).
    """
    centers, sides = _centers_and_sides(boxes)
    anchor_centers, anchor_sides = _centers_and_sides(anchors)
    sides, anchor_sides = sides.clamp(min=MIN_SIDE), anchor_sides.clamp(min=MIN_SIDE)
    shifts = (centers - anchor_centers) / anchor_sides
    deltas = torch.cat([shifts, torch.log(sides / anchor_sides)], dim=-1)
    weighted = [delta * weight for delta, weight in zip(deltas.unbind(-1), weights, strict=True)]
    return torch.stack(weighted, dim=-1)


def decode(deltas: Tensor, anchors: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes that deltas make of anchors: the inverse of `encode`; both are (..., 4)."""
    parts = [delta / weight for delta, weight in zip(deltas.unbind(-1), weights, strict=True)]
    deltas = torch.stack(parts, dim=-1)
    anchor_centers, anchor_sides = _centers_and_sides(anchors)
    centers = deltas[..., :2] * anchor_sides + anchor_centers
    half_sides = 0.5 * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_sides
    return torch.cat([centers - half_sides, centers + half_sides], dim=-1)
