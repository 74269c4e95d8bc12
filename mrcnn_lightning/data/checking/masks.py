"""Segmentations: how they are written, and the polygons of many objects compared with their images.

O objects, Q polygons, T points of all polygons.
"""

from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask
import shapely

from mrcnn_lightning.data.checking.boxes import Floats
from mrcnn_lightning.data.segmentations import (
    are_numbers,
    encode_polygons,
    is_number,
    read_segmentation,
)
from mrcnn_lightning.user_error import UserError

# A polygon of less, in pixels, may cover no pixel.
_TINY_SIDE, _TINY_AREA = 2.0, 2.0


def sorted_out(segmentation: list[Any]) -> tuple[list[list[float]], list[str]]:
    """The polygons in a list that are right, and the kinds of fault of the others."""
    polygons, kinds = [], []
    if is_laid_out_otherwise(segmentation):
        kinds.append("polygon-layout")
        segmentation = laid_out(segmentation)
    for polygon in segmentation:
        if not are_numbers(polygon):
            kinds.append("polygon-numbers")
        elif len(polygon) % 2:
            kinds.append("polygon-odd")
        elif len(polygon) < 6:
            kinds.append("polygon-short")
        else:
            polygons.append(polygon)
    return polygons, kinds


def is_laid_out_otherwise(segmentation: list[Any]) -> bool:
    """Whether it is one polygon without its list, or has a list for each point."""
    first = segmentation[0]
    if not isinstance(first, list):
        return is_number(first)
    if first and isinstance(first[0], list):
        return True
    return len(segmentation) > 2 and all(_is_point(each) for each in segmentation)


def laid_out(segmentation: list[Any]) -> list[Any]:
    """The same as [[x1, y1, x2, y2, ...]]."""
    if not isinstance(segmentation[0], list):
        return [segmentation]
    if all(_is_point(each) for each in segmentation):
        return [[number for point in segmentation for number in point]]
    return [_flat(polygon) for polygon in segmentation]


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def _flat(polygon: Any) -> Any:
    if isinstance(polygon, list) and polygon and all(_is_point(point) for point in polygon):
        return [number for point in polygon for number in point]
    return polygon


def fault_of_rle(segmentation: dict[str, Any], size: tuple[int, int]) -> str | None:
    """The kind of fault that run lengths have for an image of `size`, or None."""
    own = segmentation.get("size")
    if own != list(size):
        is_size = isinstance(own, list) and len(own) == 2 and all(map(is_number, own))
        return "rle-size" if is_size else "rle-broken"
    try:
        read_segmentation(segmentation, size)
    except UserError:
        return "rle-broken"
    return None


class Polygons:
    """Polygons of many objects, one after the other."""

    def __init__(self) -> None:
        self.rows, self.ends, self.points = array("q"), array("q"), array("d")

    def add(self, row: int, polygons: list[list[float]]) -> None:
        """Take an object's polygons, of three points each at least."""
        for polygon in polygons:
            self.points.fromlist(polygon)
            self.ends.append(len(self.points) // 2)
            self.rows.append(row)

    def summed_up(self, num_rows: int) -> "ShapesOfRows":
        """What the polygons of each row are together."""
        return ShapesOfRows(
            num_rows,
            np.asarray(self.rows, dtype=np.int64),
            np.asarray(self.ends, dtype=np.int64),
            np.asarray(self.points).reshape(-1, 2),
        )


class ShapesOfRows:
    """Extents and areas of the polygons of each row, and which of them cross themselves."""

    def __init__(
        self,
        num_rows: int,
        rows: npt.NDArray[np.int64],
        ends: npt.NDArray[np.int64],
        points: Floats,
    ) -> None:
        self.extents = np.full((num_rows, 4), np.nan)
        self.areas = np.zeros(num_rows)
        self.crossing = np.zeros(0, dtype=np.int64)  # rows
        self._points, self._ends, self._rows = points, ends, rows
        if not len(rows):
            return
        starts = ends - np.diff(ends, prepend=0)
        low, high = (each.reduceat(points, starts) for each in (np.minimum, np.maximum))
        firsts = np.flatnonzero(np.diff(rows, prepend=-1))  # polygons of a row lie together
        of_rows = rows[firsts]
        self.extents[of_rows, :2] = np.minimum.reduceat(low, firsts)
        self.extents[of_rows, 2:] = np.maximum.reduceat(high, firsts)
        np.add.at(self.areas, rows, _areas(points, starts, ends))
        self.crossing = np.unique(rows[_cross_themselves(points, starts, ends)])

    def without_pixels(self, sizes: npt.NDArray[np.int64]) -> Iterator[int]:
        """Rows whose polygons cover no pixel of images of `sizes` (O, 2), as COCO draws them."""
        sides = self.extents[:, 2:] - self.extents[:, :2]
        inside = np.minimum(self.extents[:, 2:], sizes[:, ::-1]) - self.extents[:, :2].clip(0)
        suspects = (sides < _TINY_SIDE).any(axis=1) | (self.areas < _TINY_AREA)
        suspects |= (inside < _TINY_SIDE).any(axis=1)
        suspects &= (sizes > 0).all(axis=1) & np.isfinite(self.extents).all(axis=1)
        for row in np.flatnonzero(suspects).tolist():
            frame, polygons = sizes[row].tolist(), self._polygons(row, sizes[row])
            if not pycocotools.mask.area(encode_polygons(polygons, frame)):
                yield row

    def _polygons(self, row: int, size: npt.NDArray[np.int64]) -> list[Floats]:
        first, last = np.searchsorted(self._rows, [row, row + 1])
        bounds = np.concatenate([[0], self._ends])[first : last + 1]
        # Far beyond the image, pycocotools' time grows with the edges.
        far = 2.0 * float(size.max())
        return [self._points[start:end].clip(-far, far).ravel() for start, end in pairwise(bounds)]


def _areas(points: Floats, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Floats:
    """The areas (Q,) of polygons, by the shoelace formula."""
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts
    origins = np.repeat(points[starts], ends - starts, axis=0)  # keeps the products small
    (x, y), (next_x, next_y) = (points - origins).T, (points[following] - origins).T
    with np.errstate(over="ignore", invalid="ignore"):
        return np.abs(np.add.reduceat(x * next_y - y * next_x, starts)) / 2


def _cross_themselves(
    points: Floats, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    numbers = np.repeat(np.arange(len(ends)), ends - starts)
    crossing: npt.NDArray[np.bool_] = ~shapely.is_simple(
        shapely.linearrings(points, indices=numbers)
    )
    return crossing
