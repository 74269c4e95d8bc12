"""One object mended, after the faults that were found in it.

What is written follows what `pack_coco_json` takes.
"""

from collections import Counter
from typing import Any

import numpy as np
import pycocotools.mask

from mrcnn_lightning.data.checking.boxes import Floats, iou
from mrcnn_lightning.data.checking.masks import fault_of_rle, sorted_out
from mrcnn_lightning.data.packed_objects import measured_area
from mrcnn_lightning.data.segmentations import read_segmentation
from mrcnn_lightning.user_error import UserError

_DROPPED = {
    "box-outside": "objects outside their image dropped",
    "duplicate": "objects that were there twice dropped",
    "mask-empty": "objects whose mask has no pixel dropped",
    "mask-missing": "objects without a segmentation dropped",
}
_BROKEN = {"segmentation", "rle-size", "rle-broken"}
_OF_POLYGONS = {"polygon-layout", "polygon-numbers", "polygon-odd", "polygon-short"}
_WRITTEN_ANEW = {"boxes-corners", "boxes-centred", "boxes-relative"}


class Mender:
    """Mends objects, and counts what it does.

    Args:
        changes: is added to.
    """

    def __init__(self, changes: Counter[str]) -> None:
        self.changes = changes

    def mend(
        self,
        annotation: dict[str, Any],
        kinds: set[str],
        *,
        size: tuple[int, int],
        corners: Floats,
        extent: Floats,
    ) -> bool:
        """Mend an object in place.

        Args:
            annotation: as it is in the file.
            kinds: of faults that it has.
            size: height and width of its image.
            corners: (4,) its box as x1, y1, x2, y2, NaN where it has none of an area.
            extent: (4,) its mask's, NaN where it has none.

        Returns:
            Whether it is kept.
        """
        for kind, change in _DROPPED.items():
            if kind in kinds:
                self.changes[change] += 1
                return False
        self._mend_mask(annotation, kinds, size, corners)
        if not self._mend_box(annotation, kinds, size, corners, extent):
            self.changes["objects without a box or a mask dropped"] += 1
            return False
        if "crowd" in kinds:
            annotation["iscrowd"] = int(annotation.get("iscrowd") in (1, "1"))
            self.changes["iscrowd written as 0 or 1"] += 1
        if "area" in kinds:
            annotation["area"] = _area(annotation, size)
            self.changes["areas measured"] += 1
        return True

    def _mend_mask(
        self, annotation: dict[str, Any], kinds: set[str], size: tuple[int, int], corners: Floats
    ) -> None:
        segmentation: Any = annotation.get("segmentation")
        if "rle-size" in kinds and _fits_after_all(segmentation, size, corners):
            annotation["segmentation"] = {**segmentation, "size": list(size)}
            self.changes["sizes of run lengths corrected"] += 1
        elif kinds & _BROKEN:
            annotation["segmentation"] = []
            self.changes["broken segmentations taken away"] += 1
        elif kinds & _OF_POLYGONS:
            polygons, faults = sorted_out(segmentation)
            annotation["segmentation"] = polygons
            if "polygon-layout" in faults:
                self.changes["polygons written as [[x1, y1, x2, y2, ...]]"] += 1
            self.changes["polygons taken away"] += len(faults) - ("polygon-layout" in faults)

    def _mend_box(
        self,
        annotation: dict[str, Any],
        kinds: set[str],
        size: tuple[int, int],
        corners: Floats,
        extent: Floats,
    ) -> bool:
        """Mend a box; whether there is one."""
        limits = np.tile(size[::-1], 2)
        if kinds & {"box", "box-empty", "box-not-its-mask"}:
            cut = extent.clip(0, limits)
            if not (cut[2:] > cut[:2]).all():  # false of NaN, too
                return False
            corners = cut
            self.changes["boxes taken from masks"] += 1
        elif kinds & _WRITTEN_ANEW:
            self.changes["boxes written as x, y, width, height in pixels"] += 1
        elif "box-leaves" not in kinds:
            return True
        if "box-leaves" in kinds:
            corners = corners.clip(0, limits)
            self.changes["boxes cut at the edge of their image"] += 1
        x1, y1, x2, y2 = corners.tolist()
        annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        return True


def scale(annotation: dict[str, Any], old: tuple[int, int], new: tuple[int, int]) -> None:
    """Scale a mended object, in place, from an image's old height and width to the new ones."""
    factors = (new[1] / old[1], new[0] / old[0])
    annotation["bbox"] = [value * factors[i % 2] for i, value in enumerate(annotation["bbox"])]
    shape = annotation.get("segmentation")
    if isinstance(shape, list):
        annotation["segmentation"] = [
            [value * factors[i % 2] for i, value in enumerate(polygon)] for polygon in shape
        ]
    elif isinstance(shape, dict):
        annotation["segmentation"] = _scaled_rle(shape, old, new)
    annotation["area"] = _area(annotation, new)


def _scaled_rle(rle: dict[str, Any], old: tuple[int, int], new: tuple[int, int]) -> dict[str, Any]:
    counts = read_segmentation(rle, old)
    pixels = pycocotools.mask.decode({"size": list(old), "counts": counts})
    rows, columns = (
        ((np.arange(side) + 0.5) * before / side).astype(np.int64)
        for side, before in zip(new, old, strict=True)
    )
    scaled = pycocotools.mask.encode(np.asfortranarray(pixels[rows][:, columns]))
    return {"size": list(new), "counts": scaled["counts"].decode()}


def _fits_after_all(segmentation: Any, size: tuple[int, int], corners: Floats) -> bool:
    """Whether run lengths are those of the image, and only their size is not."""
    rle = {**segmentation, "size": list(size)}
    if fault_of_rle(rle, size) or not np.isfinite(corners).all():
        return False
    mask = {"size": list(size), "counts": read_segmentation(rle, size)}
    x, y, width, height = pycocotools.mask.toBbox(mask).tolist()
    return bool(iou(np.array([[x, y, x + width, y + height]]), corners[None])[0] >= 0.5)


def _area(annotation: dict[str, Any], size: tuple[int, int]) -> float:
    try:
        shape = read_segmentation(annotation.get("segmentation"), size)
    except UserError:
        shape = None
    return measured_area(annotation["bbox"], shape, size)
