"""Faults of a set as a whole: boxes in another format, duplicates, classes, sizes in training.

N images, K categories, O objects.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcnn_lightning.data.checking.boxes import (
    AnchorLevel,
    Floats,
    Format,
    are_outside,
    best_anchor_iou,
    box_format,
    iou,
    leave_image,
    repeats,
)
from mrcnn_lightning.data.checking.entries import Listed, shown
from mrcnn_lightning.data.checking.faults import Faults
from mrcnn_lightning.data.checking.objects import ObjectTable

# A box that agrees less with its mask's is one of something else.
_SAME_OBJECT_IOU = 0.5
# In pixels of the network's input; a feature map's finest cell.
_SMALL_SIDE = 4.0
_FEW, _RARE_SHARE = 10, 1e-3
_REACHED_IOU = 0.5


@dataclass
class TrainingSize:
    """What a set is compared with: how images are resized, and the anchors that meet them."""

    name: str  # such as "800/1333"
    resize: Callable[[tuple[int, int]], tuple[int, int]]  # height and width
    levels: Sequence[AnchorLevel]


def check_boxes(objects: ObjectTable, listed: Listed, faults: Faults) -> tuple[Format, Floats]:
    """Compare boxes with images and masks.

    Returns:
        Their format, and the boxes (O, 4) as x1, y1, x2, y2, NaN where they are no numbers or of
        no known image.
    """
    sizes = listed.sizes_of(objects.images)
    format_ = box_format(objects.boxes, sizes, objects.extents)
    for name in _names_of(format_):
        faults.add_rows(name, np.flatnonzero(np.isfinite(objects.boxes[:, 0])), objects.place)
    corners = format_.corners(objects.boxes, sizes)
    corners[(sizes == 0).any(axis=1)] = np.nan
    with np.errstate(invalid="ignore"):
        is_known = np.isfinite(corners).all(axis=1)
        is_empty = is_known & (corners[:, 2:] <= corners[:, :2]).any(axis=1)
        is_outside = is_known & ~is_empty & are_outside(corners, sizes)
        leaves = is_known & ~is_empty & ~is_outside & leave_image(corners, sizes)
    faults.add_rows("box-empty", np.flatnonzero(is_empty), objects.place)
    faults.add_rows("box-outside", np.flatnonzero(is_outside), objects.place)
    faults.add_rows("box-leaves", np.flatnonzero(leaves), objects.place)
    has_mask = np.isfinite(objects.extents).all(axis=1)
    both = np.flatnonzero(is_known & ~is_empty & ~is_outside & has_mask)
    # What the mask has outside its image is not compared.
    limits = np.tile(sizes[both, ::-1], 2)
    apart = iou(*(each[both].clip(0, limits) for each in (corners, objects.extents)))
    other = both[(apart < _SAME_OBJECT_IOU) & ~np.isin(both, faults.rows("mask-empty"))]
    faults.add_rows("box-not-its-mask", other, objects.place)
    corners[is_empty | is_outside] = np.nan
    return format_, corners


def _names_of(format_: Format) -> list[str]:
    names = [] if format_.layout == "xywh" else [f"boxes-{format_.layout}"]
    return [*names, "boxes-relative"] if format_.is_relative else names


def check_set(
    objects: ObjectTable,
    corners: Floats,
    listed: Listed,
    size: TrainingSize | None,
    faults: Faults,
) -> None:
    """Find duplicates, lacking masks, rare classes, empty images, and what is small in training."""
    known = np.flatnonzero((objects.images >= 0) & (objects.labels >= 0))
    rows = known[np.isfinite(objects.boxes[known]).all(axis=1)]
    again = repeats(objects.images[rows], objects.labels[rows], objects.boxes[rows])
    faults.add_rows("duplicate", rows[again], objects.place)
    _check_masks(objects, listed, faults)
    _check_classes(objects, listed, faults)
    empty = np.ones(len(listed.names), dtype=np.bool_)
    empty[objects.images[known]] = False
    if len(known):
        faults.add_rows("image-empty", np.flatnonzero(empty), listed.image)
        if objects.crowd.all():
            faults.add("only-crowds")
    if size is not None:
        _check_sizes(objects, corners, listed, size, faults)


def _check_masks(objects: ObjectTable, listed: Listed, faults: Faults) -> None:
    has_mask = np.asarray(np.isfinite(objects.extents).all(axis=1))
    damaged = ("segmentation", "polygon-numbers", "polygon-odd", "polygon-short", "rle-size")
    said = [row for name in (*damaged, "rle-broken", "mask-empty") for row in faults.rows(name)]
    said += np.flatnonzero(objects.images < 0).tolist()
    has_mask[np.array(said, dtype=np.int64)] = True  # has one, of which more was said
    # Run lengths of an image without a size were not read.
    has_size = (listed.sizes_of(objects.images) > 0).all(axis=1)
    missing = np.flatnonzero(~has_mask & ~objects.crowd & has_size)
    if len(missing) and not has_mask.any():
        faults.add("no-masks")
    else:
        faults.add_rows("mask-missing", missing, objects.place)


def _check_classes(objects: ObjectTable, listed: Listed, faults: Faults) -> None:
    trained = objects.labels[(objects.labels >= 0) & (objects.images >= 0) & ~objects.crowd]
    numbers = np.bincount(trained, minlength=len(listed.classes))
    if not numbers.any():
        return
    for row, num in enumerate(numbers.tolist()):
        name = shown(listed.classes[row])
        if num == 0:
            faults.add("class-empty", name, row)
        elif num < max(_FEW, numbers.max() * _RARE_SHARE):
            faults.add("class-rare", f"{name} {num:,}", row)


def at_training_size(
    objects: ObjectTable, corners: Floats, listed: Listed, size: TrainingSize
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Objects that are learnt from: their rows (R,), and their boxes (R, 4) as training sees them.

    Args:
        objects: of all images.
        corners: (O, 4) boxes x1, y1, x2, y2; NaN where nothing is learnt.
        listed: images.
        size: how they are resized.
    """
    shapes, which = np.unique(listed.sizes, axis=0, return_inverse=True)
    resized = [size.resize((h, w)) if h * w else (0, 0) for h, w in shapes.tolist()]
    scales = np.array(resized).reshape(-1, 2) / shapes.clip(1)
    rows = np.flatnonzero(np.isfinite(corners).all(axis=1) & ~objects.crowd)
    images = which.ravel()[objects.images[rows]]
    return rows, corners[rows] * np.tile(scales[images, ::-1], 2)


def _check_sizes(
    objects: ObjectTable, corners: Floats, listed: Listed, size: TrainingSize, faults: Faults
) -> None:
    rows, scaled = at_training_size(objects, corners, listed, size)
    small = (scaled[:, 2:] - scaled[:, :2]).min(axis=1, initial=np.inf) < _SMALL_SIDE
    at = f" at {size.name}"
    faults.add_rows("small", rows[small], objects.place, circumstance=at)
    if len(size.levels):
        missed = best_anchor_iou(scaled, size.levels) < _REACHED_IOU
        faults.add_rows("no-anchor", rows[missed], objects.place, circumstance=at)
