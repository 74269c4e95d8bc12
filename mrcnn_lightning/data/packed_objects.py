"""Objects of COCO-format files: checked, and packed one after the other.

O objects of all images, Q polygons of all objects, T points of all polygons.
"""

import reprlib
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pycocotools.mask
import torch
from torch import Tensor

from mrcnn_lightning.data.segmentations import (
    Shape,
    are_numbers,
    encode_polygons,
    is_number,
    read_segmentation,
)
from mrcnn_lightning.user_error import UserError


class Annotation(msgspec.Struct, gc=False):
    """One object of a file, as it is there."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None
    bbox: Any = None
    area: Any = msgspec.UNSET
    iscrowd: Any = 0
    segmentation: Any = None


class PackedObjects:
    """Objects of all images, packed one after the other."""

    def __init__(self) -> None:
        self.images, self.labels, self.crowd = array("q"), array("q"), array("b")
        self.boxes, self.areas, self.points = array("d"), array("d"), array("d")
        self.rle_ends, self.polygon_ends, self.point_ends = array("q"), array("q"), array("q")
        self.rles = bytearray()
        self.without_mask: list[Any] = []
        self.left_out: Counter[str] = Counter()
        self.odd_areas = 0
        self.has_id_0 = False

    def add(self, annotation: Annotation, *, image: int, size: tuple[int, int], label: int) -> None:
        """Check an object, and keep it unless nothing can be learnt from it."""
        box, is_crowd = _box(annotation), _is_crowd(annotation)
        try:
            shape = read_segmentation(annotation.segmentation, size)
        except ValueError as error:
            raise UserError(f"the segmentation of {_name(annotation)} {error}") from error
        self.has_id_0 |= annotation.id == 0
        reason = _why_not(box, shape, size)
        if reason:
            self.left_out[reason] += 1
            return
        if shape is None and not is_crowd:
            self.without_mask.append(_id(annotation))
        self.images.append(image)
        self.labels.append(label)
        self.crowd.append(is_crowd)
        self.boxes.extend(box)
        self.areas.append(self._area(annotation.area, box, shape, size))
        self._add_shape(shape)

    def _area(
        self, area: Any, box: Sequence[float], shape: Shape | None, size: tuple[int, int]
    ) -> float:
        if is_number(area) and area > 0 and area is not True:
            return float(area)
        self.odd_areas += area is not msgspec.UNSET
        return measured_area(box, shape, size)

    def _add_shape(self, shape: Shape | None) -> None:
        if isinstance(shape, bytes):
            self.rles += shape
        elif shape:
            for polygon in shape:
                self.points.fromlist(polygon)
                self.point_ends.append(len(self.points) // 2)
        self.rle_ends.append(len(self.rles))
        self.polygon_ends.append(len(self.point_ends))

    def packed(self, num_images: int) -> dict[str, Any]:
        """See `pack_coco_json`."""
        names = ("labels", "areas", "rles", "rle_ends", "polygon_ends", "point_ends")
        return {
            "without_mask": self.without_mask,
            "left_out": dict(self.left_out),
            "odd_areas": self.odd_areas,
            "has_id_0": self.has_id_0,
            "object_ends": torch.bincount(tensor_of(self.images), minlength=num_images).cumsum(0),
            "boxes": tensor_of(self.boxes).view(-1, 4),
            "crowd": tensor_of(self.crowd).bool(),
            "points": tensor_of(self.points).view(-1, 2),
            **{name: tensor_of(getattr(self, name)) for name in names},
        }


def measured_area(box: Sequence[float], shape: Shape | None, size: tuple[int, int]) -> float:
    """The pixels of a mask, or else the area of the box x, y, width, height."""
    measured = 0.0
    if isinstance(shape, bytes):
        measured = float(pycocotools.mask.area({"size": list(size), "counts": shape}))
    elif shape:
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in shape]
        measured = float(pycocotools.mask.area(encode_polygons(polygons, size)))
    return measured or box[2] * box[3]


def _name(annotation: Annotation) -> str:
    return f"annotation {_id(annotation)}"


def _id(annotation: Annotation) -> Any:
    return annotation.id if isinstance(annotation.id, int) else reprlib.repr(annotation.id)


def _box(annotation: Annotation) -> list[float]:
    box = annotation.bbox
    if not are_numbers(box) or len(box) != 4:
        raise UserError(
            f"{_name(annotation)} has bbox={reprlib.repr(box)}, which must be four numbers "
            "[x, y, width, height]"
        )
    return list(box)


def _is_crowd(annotation: Annotation) -> bool:
    value = annotation.iscrowd
    if not isinstance(value, (int, float)) or value not in (0, 1):
        raise UserError(
            f"{_name(annotation)} has iscrowd={reprlib.repr(value)}, which must be 0 or 1"
        )
    return bool(value)


def _why_not(box: Sequence[float], shape: Shape | None, size: tuple[int, int]) -> str | None:
    """Why nothing can be learnt from an object, or None."""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "boxes without area"
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        return "boxes outside their image"
    return "polygons of fewer than three points" if shape == [] else None


def tensor_of(buffer: Any) -> Tensor:
    """The numbers of a buffer, without a copy."""
    numbers = torch.from_numpy(np.asarray(memoryview(buffer)))
    # Empty buffers may all lie at one address, which torch.save takes for one of several types.
    return numbers if len(numbers) else numbers.clone()
