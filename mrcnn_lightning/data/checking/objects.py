"""The objects of a file, read in chunks: what each says for itself.

O objects of all images.
"""

from array import array
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask

from mrcnn_lightning.data.checking.boxes import Floats
from mrcnn_lightning.data.checking.entries import Listed, found_row, is_whole, number_in, shown
from mrcnn_lightning.data.checking.faults import Faults
from mrcnn_lightning.data.checking.masks import (
    Polygons,
    ShapesOfRows,
    fault_of_rle,
    sorted_out,
)
from mrcnn_lightning.data.coco_json import Content
from mrcnn_lightning.data.packed_objects import Annotation
from mrcnn_lightning.data.segmentations import are_numbers, is_number

# Objects of which the points are in memory at once.
_PER_CHUNK = 20_000
_NO_BOX = [float("nan")] * 4


@dataclass
class ObjectTable:
    """What checks of the whole set look at."""

    ids: "array[int]"  # -1 where there is none
    images: npt.NDArray[np.int64]  # (O,) rows of images, -1 where unknown
    labels: npt.NDArray[np.int64]  # (O,) rows of categories, -1 where unknown
    boxes: Floats  # (O, 4) as they are written, NaN where they are no numbers
    extents: Floats  # (O, 4) the masks' corners, NaN where there is none
    crowd: npt.NDArray[np.bool_]  # (O,)

    def place(self, row: int) -> str:
        """An object in the user's words."""
        return _place(self.ids, row)


class ObjectReader:
    """Reads objects, and notes what is wrong with each.

    Args:
        listed: images and categories.
        faults: are added to.
    """

    def __init__(self, listed: Listed, faults: Faults) -> None:
        self.listed, self.faults = listed, faults
        self.ids, self.images, self.labels = array("q"), array("q"), array("q")
        self.boxes, self.crowd = array("d"), array("b")
        self.extents: list[Floats] = []
        self._polygons = Polygons()
        self._rles: dict[int, dict[str, Any]] = {}  # of the chunk, by row in it

    def read(self, content: Content) -> ObjectTable:
        """All objects of a file."""
        for row, annotation in enumerate(content.decoded(Annotation)):
            self._add(annotation, row)
            if (row + 1) % _PER_CHUNK == 0:
                self._close_chunk(_PER_CHUNK)
        num = len(self.ids)
        self._close_chunk(num % _PER_CHUNK)
        table = ObjectTable(
            ids=self.ids,
            images=np.array(self.images, dtype=np.int64),
            labels=np.array(self.labels, dtype=np.int64),
            boxes=np.array(self.boxes).reshape(num, 4),
            extents=np.concatenate([np.zeros((0, 4)), *self.extents]),
            crowd=np.array(self.crowd, dtype=np.bool_),
        )
        self._check_ids(table)
        return table

    def _add(self, annotation: Annotation, row: int) -> None:
        is_id = is_whole(annotation.id)
        self.ids.append(int(annotation.id) if is_id else -1)
        if not is_id:
            self._note("annotation-id", row, annotation.id)
        listed = self.listed
        self.images.append(self._row_of("image", annotation.image_id, listed.image_rows, row))
        self.labels.append(self._row_of("category", annotation.category_id, listed.class_rows, row))
        box = annotation.bbox
        if not are_numbers(box) or len(box) != 4:
            self._note("box", row, box)
            box = _NO_BOX
        self.boxes.extend(box)
        value = annotation.iscrowd
        if not isinstance(value, (int, float)) or value not in (0, 1):
            self._note("crowd", row, value)
        self.crowd.append(value in (1, "1") if isinstance(value, (int, float, str)) else False)
        area = annotation.area
        if not (is_number(area) and area > 0):
            self.faults.add("area", self._place(row), row)
        self._add_mask(annotation.segmentation, row)

    def _place(self, row: int) -> str:
        return _place(self.ids, row)

    def _note(self, kind: str, row: int, value: Any) -> None:
        self.faults.add(kind, f"{self._place(row)} has {shown(value)}", row)

    def _row_of(self, name: str, value: Any, rows: dict[Hashable, int], row: int) -> int:
        """The row of an object's image or category."""
        found = found_row(value, rows)
        if found < 0 and isinstance(value, str):
            found = found_row(number_in(value), rows)
        if found < 0:
            self._note(f"{name}-id-unknown", row, value)
        elif isinstance(value, str):
            self.faults.add("id-as-text", f"{self._place(row)} has {name}_id {shown(value)}", row)
        return found

    def _add_mask(self, segmentation: Any, row: int) -> None:
        kinds: list[str] = []
        if not segmentation:
            pass
        elif isinstance(segmentation, list):
            polygons, kinds = sorted_out(segmentation)
            self._polygons.add(row % _PER_CHUNK, polygons)
        elif isinstance(segmentation, dict):
            image = self.images[-1]
            size = tuple(self.listed.sizes[image].tolist()) if image >= 0 else (0, 0)
            fault = fault_of_rle(segmentation, size) if 0 not in size else None
            if fault:
                kinds = [fault]
            elif 0 not in size:
                self._rles[row % _PER_CHUNK] = segmentation
        else:
            kinds = ["segmentation"]
        for kind in dict.fromkeys(kinds):
            self.faults.add(kind, self._place(row), row)

    def _close_chunk(self, num: int) -> None:
        if not num:
            return
        first = len(self.ids) - num
        sizes = self.listed.sizes_of(np.array(self.images[first:], dtype=np.int64))
        shapes = self._polygons.summed_up(num)

        self.faults.add_rows("polygon-crosses", first + shapes.crossing, self._place)
        empty = [first + row for row in shapes.without_pixels(sizes)]
        empty += self._read_rles(shapes, first)
        self.faults.add_rows("mask-empty", sorted(empty), self._place)
        limits = np.where(sizes > 0, sizes, np.inf)[:, ::-1]
        leaving = (shapes.extents[:, :2] < -1) | (shapes.extents[:, 2:] > limits + 1)
        leaving &= ~np.isin(np.arange(num), np.array(empty, dtype=np.int64) - first)[:, None]
        self.faults.add_rows(
            "mask-leaves", first + np.flatnonzero(leaving.any(axis=1)), self._place
        )
        self.extents.append(shapes.extents)
        self._polygons = Polygons()

    def _read_rles(self, shapes: ShapesOfRows, first: int) -> list[int]:
        """Add the extents of run lengths; the rows of those without a pixel."""
        if not self._rles:
            return []
        encoded = [_encoded(rle) for rle in self._rles.values()]
        rows = np.array(list(self._rles), dtype=np.int64)
        boxes = np.asarray(pycocotools.mask.toBbox(encoded))
        has_pixels = (boxes[:, 2:] > 0).all(axis=1)
        boxes[:, 2:] += boxes[:, :2]
        shapes.extents[rows[has_pixels]] = boxes[has_pixels]
        self._rles = {}
        return [int(first + row) for row in rows[~has_pixels]]

    def _check_ids(self, table: ObjectTable) -> None:
        ids = np.array(table.ids, dtype=np.int64)
        known = np.flatnonzero(ids >= 0)
        order = known[np.argsort(ids[known], kind="stable")]
        again = np.sort(order[1:][ids[order][1:] == ids[order][:-1]])
        self.faults.add_rows("annotation-id-twice", again, lambda row: f"{ids[row]}")
        self.faults.add_rows("annotation-id-0", np.flatnonzero(ids == 0), lambda row: "")


def _place(ids: "array[int]", row: int) -> str:
    return f"annotation {ids[row]}" if ids[row] >= 0 else f"the {row + 1}. annotation"


def _encoded(rle: dict[str, Any]) -> dict[str, Any]:
    if isinstance(rle["counts"], list):
        encoded: dict[str, Any] = pycocotools.mask.frPyObjects(rle, *rle["size"])
        return encoded
    return {"size": rle["size"], "counts": rle["counts"].encode()}
