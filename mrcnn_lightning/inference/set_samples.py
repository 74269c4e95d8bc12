"""Drawn samples of a data set, the hard ones first: faulty, small, crowded.

N images, O objects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mrcnn_lightning.data.checking.boxes import Floats
from mrcnn_lightning.data.checking.check import Checked
from mrcnn_lightning.data.checking.faults import OF_IMAGES, OF_OBJECTS
from mrcnn_lightning.data.checking.masks import fault_of_rle, sorted_out
from mrcnn_lightning.data.coco_json import Content, read_coco_json
from mrcnn_lightning.data.images import read_image
from mrcnn_lightning.data.packed_objects import Annotation
from mrcnn_lightning.data.segmentations import encode_polygons, read_segmentation
from mrcnn_lightning.inference.drawing import draw_objects
from mrcnn_lightning.results.pasting import Crop
from mrcnn_lightning.results.rle import decode_crops
from mrcnn_lightning.user_error import UserError

# Pictures are not larger, in pixels: a page holds several.
_LONGER_SIDE = 640
_NOTHING: Crop = (np.zeros((1, 1), dtype=np.bool_), 0, 0)


@dataclass
class Sample:
    """An image with its objects drawn."""

    name: str
    reason: str  # why it was chosen
    num_objects: int
    picture: Image.Image


def draw_samples(json: str | Path, checked: Checked, *, num_of_each: int = 3) -> list[Sample]:
    """Draw some images of a set as its file says, without what is too faulty to be drawn.

    Args:
        json: the file.
        checked: what was found in it.
        num_of_each: images for each of four reasons.
    """
    return read_coco_json(json, partial(_drawn, checked=checked, num_of_each=num_of_each))


def _drawn(content: Content, checked: Checked, num_of_each: int) -> list[Sample]:
    assert checked.listed is not None and checked.files is not None and checked.objects is not None
    samples = []
    for image, reason in choose(checked, num_of_each):
        file = checked.files[image]
        assert file is not None
        rows = np.flatnonzero((checked.objects.images == image) & (checked.objects.labels >= 0))
        try:
            pixels = read_image(file.path)
        except UserError:
            continue
        picture = _picture(pixels, rows.tolist(), content, checked)
        samples.append(Sample(checked.listed.image(image), reason, len(rows), picture))
    return samples


def choose(checked: Checked, num_of_each: int) -> list[tuple[int, str]]:
    """Rows of images that are worth a look, and why: no image twice."""
    assert checked.files is not None and checked.objects is not None
    objects, corners = checked.objects, checked.corners
    assert corners is not None
    usable = [row for row, file in enumerate(checked.files) if file and not file.problem]
    is_usable = set(usable)
    numbers = np.bincount(objects.images[objects.images >= 0], minlength=len(checked.files))
    sides = np.sqrt((corners[:, 2:] - corners[:, :2]).prod(axis=1))
    smallest = np.full(len(checked.files), np.inf)
    known = np.flatnonzero(np.isfinite(sides) & ~objects.crowd)
    np.minimum.at(smallest, objects.images[known], sides[known])
    spread = np.linspace(0, len(usable) - 1, num_of_each).round().astype(int).tolist()
    orders = {
        "with a fault": [row for row in _faulty_images(checked) if row in is_usable],
        "with the smallest objects": sorted(usable, key=lambda row: float(smallest[row])),
        "with the most objects": sorted(usable, key=lambda row: -int(numbers[row])),
        "one of the others": [*(usable[index] for index in spread if usable), *usable],
    }
    chosen: dict[int, str] = {}
    for reason, order in orders.items():
        left = [
            row
            for row in dict.fromkeys(order)
            if row not in chosen and (numbers[row] or "other" in reason)
        ]
        chosen |= dict.fromkeys(left[:num_of_each], reason)
    return list(chosen.items())


def _faulty_images(checked: Checked) -> Iterator[int]:
    """Rows of images with faults that are no notes, or with objects that have some."""
    assert checked.objects is not None
    for name, kind in OF_IMAGES.items():
        if kind.severity != "note":
            yield from checked.faults.rows(name)
    for name, kind in OF_OBJECTS.items():
        if kind.severity != "note":
            yield from checked.objects.images[checked.faults.rows(name)].tolist()


def _picture(
    pixels: torch.Tensor, rows: Sequence[int], content: Content, checked: Checked
) -> Image.Image:
    assert checked.objects is not None and checked.corners is not None
    assert checked.listed is not None
    factor = min(1.0, _LONGER_SIDE / max(pixels.shape[1:]))
    size = [max(1, round(side * factor)) for side in pixels.shape[1:]]
    small = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(size[::-1])
    crops = []
    for annotation in content.decoded(Annotation, rows):
        shape = _mask(annotation.segmentation, (pixels.shape[1], pixels.shape[2]))
        crops.append(_shrunk(shape, factor, size))
    boxes: Floats = np.nan_to_num(checked.corners[rows]) * factor
    return draw_objects(
        torch.from_numpy(np.array(small)).permute(2, 0, 1),
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(checked.objects.labels[rows]) + 1,
        class_names=checked.listed.classes,
        masks=crops,
    )


def _mask(segmentation: Any, size: tuple[int, int]) -> Crop:
    """The mask that a segmentation draws in an image of `size`, nothing if it is damaged."""
    rle = b""
    if isinstance(segmentation, list) and segmentation:
        polygons = [np.array(polygon, dtype=float) for polygon in sorted_out(segmentation)[0]]
        far = 2.0 * max(size)
        near = [polygon.clip(-far, far) for polygon in polygons]
        rle = encode_polygons(near, size)["counts"] if near else b""
    elif isinstance(segmentation, dict) and not fault_of_rle(segmentation, size):
        shape = read_segmentation(segmentation, size)
        rle = shape if isinstance(shape, bytes) else b""
    crop = next(decode_crops([rle], size)) if rle else _NOTHING
    return crop if crop[0].size else _NOTHING


def _shrunk(crop: Crop, factor: float, size: Sequence[int]) -> Crop:
    """A crop in the image made smaller to `size`."""
    mask, *start = crop
    for axis in (0, 1):
        first = min(int(start[axis] * factor), size[axis] - 1)
        last = min(max(first + 1, round((start[axis] + mask.shape[axis]) * factor)), size[axis])
        where = ((np.arange(first, last) + 0.5) / factor - start[axis]).astype(int)
        mask = mask.take(where.clip(0, mask.shape[axis] - 1), axis=axis)
        start[axis] = first
    return mask, start[0], start[1]
