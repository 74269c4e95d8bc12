"""Boxes compared with their images, their masks and one another; all vectorised.

O objects, A kinds of anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Layout = Literal["corners", "centred", "xywh"]
# Boxes are rounded; one that leaves its image by less than this, in pixels, does not.
ROUNDING = 1.0
# A share of boxes that rounding and slips leave of "all".
_NEARLY_ALL = 0.99
# So many boxes leave their image in a set whose boxes mean something else.
_SUSPICIOUS = 0.2
# Parts of a whole are at most 1; rounding may go beyond.
_WHOLE = 1.001
_PER_CHUNK = 50_000
# Of 2**64 divided by the golden ratio: spreads what it multiplies over all bits.
_ODD_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Format(NamedTuple):
    """How a file's boxes are written; COCO's are "xywh" in pixels."""

    layout: Layout
    is_relative: bool

    def corners(self, boxes: Floats, sizes: npt.NDArray[np.int64]) -> Floats:
        """Boxes (O, 4) of images of `sizes` (O, 2) height, width as x1, y1, x2, y2 in pixels."""
        scale = np.tile(sizes[:, ::-1], 2) if self.is_relative else 1
        boxes = boxes * scale
        if self.layout == "corners":
            return boxes
        start = boxes[:, :2] - (boxes[:, 2:] / 2 if self.layout == "centred" else 0)
        return np.concatenate([start, start + boxes[:, 2:]], axis=1)


COCO_FORMAT = Format("xywh", is_relative=False)


def box_format(
    boxes: Floats, sizes: npt.NDArray[np.int64], extents: Floats | None = None
) -> Format:
    """The format that a set's boxes are written in, COCO's unless they clearly have another.

    Where objects have masks, boxes of the right format surround them. Else boxes of another than
    COCO's often leave their image if read as COCO's, and nearly never if read as what they are.

    Args:
        boxes: (O, 4) as they are written.
        sizes: (O, 2) height and width of their images.
        extents: (O, 4) the masks' corners, NaN where there is no mask.
    """
    known = np.isfinite(boxes).all(axis=1) & (sizes > 0).all(axis=1)
    boxes, sizes = boxes[known], sizes[known]
    if not len(boxes):
        return COCO_FORMAT
    are_parts = (np.abs(boxes) <= _WHOLE).all(axis=1) & (boxes > 0).any(axis=1)
    is_relative = bool(are_parts.mean() > 0.95 and sizes.max() > 8)
    formats = [Format(layout, is_relative) for layout in ("xywh", "corners", "centred")]
    if extents is not None and (masked := np.isfinite(extents[known]).all(axis=1)).mean() > 0.5:
        read = (each.corners(boxes, sizes)[masked] for each in formats)
        overlaps = [_median(iou(each, extents[known][masked])) for each in read]
        best = int(np.argmax(overlaps))
        return formats[best] if overlaps[0] < 0.5 and overlaps[best] > 0.7 else formats[0]
    # In hardly any other set do so many boxes leave their image, none of them if read otherwise.
    if _fit(formats[0], boxes, sizes) < 1 - _SUSPICIOUS:
        for each in formats[1:]:
            if _fit(each, boxes, sizes) > _NEARLY_ALL:
                return each
    return formats[0]


def _median(values: Floats) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _fit(format_: Format, boxes: Floats, sizes: npt.NDArray[np.int64]) -> float:
    """The share of boxes that have an area and lie in their image."""
    corners = format_.corners(boxes, sizes)
    has_area = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return float((has_area & ~leave_image(corners, sizes)).mean())


def leave_image(corners: Floats, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which boxes (O, 4) x1, y1, x2, y2 leave their images of `sizes` (O, 2), rounding aside."""
    limits = sizes[:, ::-1] + ROUNDING
    outside = (corners[:, :2] < -ROUNDING) | (corners[:, 2:] > limits)
    return np.asarray(outside.any(axis=1))


def are_outside(corners: Floats, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which boxes (O, 4) have no part in their images of `sizes` (O, 2)."""
    beyond = (corners[:, :2] >= sizes[:, ::-1]) | (corners[:, 2:] <= 0)
    return np.asarray(beyond.any(axis=1))


def iou(one: Floats, other: Floats) -> Floats:
    """The IoU of each box (O, 4) with the one in its place; 0 where neither has an area."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    common = sides.clip(0).prod(axis=1)
    areas = [(each[:, 2:] - each[:, :2]).clip(0).prod(axis=1) for each in (one, other)]
    union = areas[0] + areas[1] - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))


def repeats(
    images: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], boxes: Floats
) -> npt.NDArray[np.int64]:
    """Rows of objects that have the image, class and box of an earlier one."""
    columns = np.column_stack([images, labels, boxes + 0.0])  # -0.0 is 0.0
    rows = _with_a_like(columns)
    order = rows[np.lexsort(columns[rows].T[::-1])]  # stable, so the first stays first
    same = (columns[order][1:] == columns[order][:-1]).all(axis=1)
    return np.sort(order[1:][same])


def _with_a_like(columns: Floats) -> npt.NDArray[np.int64]:
    """Rows that may equal another one: their hashes do. Far faster than to sort all columns."""
    if len(columns) < 2:
        return np.zeros(0, dtype=np.int64)
    hashes = np.zeros(len(columns), dtype=np.uint64)
    for column in columns.T:
        hashes = (hashes ^ np.ascontiguousarray(column).view(np.uint64)) * _ODD_FACTOR
        hashes ^= hashes >> np.uint64(32)
    order = np.argsort(hashes, kind="stable")
    equal = hashes[order][1:] == hashes[order][:-1]
    return np.sort(order[np.append(False, equal) | np.append(equal, False)])


@dataclass
class AnchorLevel:
    """The anchors of a level of features."""

    cells: Floats  # (A, 4) the anchors of one cell, centred on the origin
    strides: tuple[int, int]  # down and right
    offset: float  # where in its cell an anchor is centred


def best_anchor_iou(corners: Floats, levels: Sequence[AnchorLevel]) -> Floats:
    """The IoU (O,) of boxes, in pixels of the network's input, with their best anchors.

    An anchor's best place is the cell nearest to the box. Ones that reach out of the image count,
    as they do in training.
    """
    chunks = [corners[start : start + _PER_CHUNK] for start in range(0, len(corners), _PER_CHUNK)]
    best = [
        np.max([_level_iou(chunk, level) for level in levels], axis=0) if len(levels) else 0
        for chunk in chunks
    ]
    return np.concatenate([np.zeros(0), *best])


def _level_iou(corners: Floats, level: AnchorLevel) -> Floats:
    strides = np.array(level.strides[::-1], dtype=np.float64)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    cells = np.round(centres / strides - level.offset).clip(0)
    nearest = np.tile((cells + level.offset) * strides, 2)  # (O, 4)
    best = np.zeros(len(corners))
    for anchor in level.cells:
        best = np.maximum(best, iou(corners, nearest + anchor))
    return best
