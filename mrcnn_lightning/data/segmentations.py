"""Segmentations as COCO's format writes them: polygons or run lengths, checked and encoded."""

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask

from mrcnn_lightning.user_error import UserError

# Polygons [x1, y1, x2, y2, ...], or compressed run lengths.
Shape = list[list[float]] | bytes
# Beyond this, numbers are not finite as float32, or their sums are not.
_LARGEST = 1e37
# Polygons that reach further out, in pixels, are clipped: the time and memory that pycocotools
# takes for an edge grow with its length.
_FAR = 1e5


def is_number(value: Any) -> bool:
    """Whether it is a number that float32 can hold."""
    return isinstance(value, (int, float)) and abs(value) <= _LARGEST


def are_numbers(values: Any) -> bool:
    """Whether it is a list of such numbers."""
    if not isinstance(values, list):
        return False
    try:
        # Of millions, faster than one by one: the sum of numbers is one, and a finite one.
        is_finite = math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False
    return is_finite and min(values, default=0) >= -_LARGEST and max(values, default=0) <= _LARGEST


def read_segmentation(segmentation: Any, size: tuple[int, int]) -> Shape | None:
    """An object's polygons or run lengths, None if there are none.

    Polygons of fewer than three points are left out (as Detectron2 does); an empty list is what
    remains if all are. One that reaches out of its image by far is clipped.

    Args:
        segmentation: the value in the file.
        size: height and width of the image.

    Raises:
        UserError: what is wrong with it, without its place.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        return _polygons(segmentation)
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, size)
    raise UserError("is neither a list of polygons nor run lengths")


def encode_polygons(polygons: list[npt.NDArray[np.float64]], size: Sequence[int]) -> dict[str, Any]:
    """The pixels of an image of `size` that polygons (2 P,) cover, as run lengths."""
    rles = pycocotools.mask.frPyObjects(polygons, *size)
    rle = rles[0] if len(rles) == 1 else pycocotools.mask.merge(rles)
    return {"size": size, "counts": rle["counts"]}


def _polygons(segmentation: list[Any]) -> list[list[float]]:
    if not all(are_numbers(polygon) and len(polygon) % 2 == 0 for polygon in segmentation):
        raise UserError("is no list of polygons [x1, y1, x2, y2, ...] of finite numbers")
    return [
        polygon if min(polygon) >= -_FAR and max(polygon) <= _FAR else clipped(polygon, -_FAR, _FAR)
        for polygon in segmentation
        if len(polygon) >= 6
    ]


def clipped(polygon: list[float] | npt.NDArray[np.float64], low: float, high: float) -> list[float]:
    """The part of a polygon in a square, one point three times if there is none.

    Sutherland and Hodgman's way (1974): what lies beyond a side is moved to it.
    """
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    for axis, bound, sign in ((0, low, 1), (0, high, -1), (1, low, 1), (1, high, -1)):
        inside = sign * points[:, axis] >= sign * bound
        kept = []
        for number, end in enumerate(points):
            start = points[number - 1]
            if inside[number] != inside[number - 1]:
                part = (bound - start[axis]) / (end[axis] - start[axis])
                crossing = start + part * (end - start)
                crossing[axis] = bound
                kept.append(crossing)
            if inside[number]:
                kept.append(end)
        points = np.array(kept).reshape(-1, 2)
    return points.ravel().tolist() if len(points) > 2 else [low] * 6


def _run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> bytes:
    if segmentation.get("size") != list(size):
        own = reprlib.repr(segmentation.get("size"))
        raise UserError(f"is of size {own}, its image of {list(size)}")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        lengths = _lengths(counts)
    elif isinstance(counts, list) and all(isinstance(count, int) for count in counts):
        lengths = counts
    else:
        raise UserError("has neither a text nor a list of whole numbers as counts")
    if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
        raise UserError("has run lengths whose sum is not the area of its image")
    if isinstance(counts, str):
        return counts.encode()
    encoded: bytes = pycocotools.mask.frPyObjects({"size": list(size), "counts": counts}, *size)[
        "counts"
    ]
    return encoded


def _lengths(counts: str) -> list[int]:
    """The run lengths in COCO's compressed text, which pycocotools reads without any check.

    Each character has five bits, the lowest first, and a bit that says whether more follow; from
    the fourth number on, the difference to the last but one is written.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise UserError("has counts that are no compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise UserError("has counts that end within a number")
    return lengths
