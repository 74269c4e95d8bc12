"""Objects' masks as they are annotated, placed in the image's plane, and the mini-masks of them.

G objects of one image, P points, M mini-mask side, h and w of a mask's crop.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor

from mrcnn_lightning.data.annotations import Objects
from mrcnn_lightning.data.points import cut_to, within
from mrcnn_lightning.data.segmentations import clipped, encode_polygons

# Polygons that reach further out, in cells, are clipped: pycocotools' time grows with their edges.
# Large enough that what it draws in the frame stays the same.
_FAR = 1e5
# Coordinates beyond it may have become infinite.
_FARTHEST = 1e37


@dataclass
class ObjectMask:
    """Polygons, or pixels and where three of their corners are."""

    # Polygons (P, 2), or of `pixels` (3, 2): the first corner, the first row's end, the column's.
    points: list[Tensor]
    pixels: Tensor | None  # (h, w) uint8

    @property
    def extent(self) -> Tensor:
        """The box (4,) around pixels."""
        first, right, below = self.points[0]
        corners = torch.stack([first, right, below, right + below - first])
        return torch.cat([corners.amin(0), corners.amax(0)])


def masks_of(objects: Objects, size: tuple[int, int]) -> list[ObjectMask]:
    """The masks of G objects of an image of `size`."""
    return [
        _crop_of_rle(shape, size) if isinstance(shape, bytes) else ObjectMask(shape, None)
        for shape in objects.shapes
    ]


def _crop_of_rle(rle: bytes, size: tuple[int, int]) -> ObjectMask:
    """The part of a mask that holds all its ones; one empty pixel if there are none."""
    whole = {"size": list(size), "counts": rle}
    x, y, width, height = (
        (int(side) for side in pycocotools.mask.toBbox(whole)) if rle else (0,) * 4
    )
    if width == 0 or height == 0:
        return pixels_at(torch.zeros(1, 1, dtype=torch.uint8), left=0, top=0)
    pixels = pycocotools.mask.decode(whole)[y : y + height, x : x + width]
    return pixels_at(torch.from_numpy(np.ascontiguousarray(pixels)), left=x, top=y)


def pixels_at(pixels: Tensor, *, left: int, top: int) -> ObjectMask:
    """A mask whose pixels (h, w) are the image's, from a column and a row on."""
    height, width = pixels.shape
    corners = [[left, top], [left + width, top], [left, top + height]]
    return ObjectMask([torch.tensor(corners, dtype=torch.float32)], pixels)


def cut_mask(mask: ObjectMask, convex: Tensor) -> ObjectMask:
    """The part of a mask that lies in a convex polygon (V, 2); perhaps none of its polygons."""
    if mask.pixels is None:
        parts = [cut_to(points, convex) for points in mask.points]
        return ObjectMask([part for part in parts if len(part) >= 3], None)
    first, right, below = mask.points[0]
    height, width = mask.pixels.shape
    across = ((torch.arange(width) + 0.5) / width)[:, None] * (right - first)  # (w, 2)
    down = ((torch.arange(height) + 0.5) / height)[:, None] * (below - first)  # (h, 2)
    middles = (first + down[:, None] + across).view(-1, 2)
    return replace(mask, pixels=mask.pixels * within(middles, convex).view(height, width))


def rasterize(polygons: Sequence[Tensor], frame: Tensor, size: int) -> Tensor:
    """What polygons (P, 2) cover of a frame (4,), as (size, size) uint8 cells."""
    cells_per_pixel = size / (frame[2:] - frame[:2])
    scaled = [(points - frame[:2]) * cells_per_pixel for points in polygons]
    return torch.from_numpy(pycocotools.mask.decode(_encoded(scaled, (size, size))))


def _encoded(polygons: Sequence[Tensor], size: tuple[int, int]) -> dict[str, object]:
    flat = [points.flatten().double().clamp(-_FARTHEST, _FARTHEST).numpy() for points in polygons]
    if not flat:
        nothing: dict[str, object] = pycocotools.mask.encode(np.zeros(size, np.uint8, order="F"))
        return nothing
    near = [p if abs(p).max() <= _FAR else np.array(clipped(p, -_FAR, _FAR)) for p in flat]
    return encode_polygons(near, size)


def frames_of(masks: Sequence[ObjectMask], boxes: Tensor) -> Tensor:
    """What mini-masks are to cover, (G, 4).

    Polygons are drawn in their object's box (of one pixel a side at least, or what a crop left of
    a polygon would become huge), pixels keep their own.
    """
    frames = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1)
    for frame, mask in zip(frames, masks, strict=True):
        if mask.pixels is not None:
            frame[:] = mask.extent
    return frames


def mini_masks(masks: Sequence[ObjectMask], frames: Tensor, size: int) -> Tensor:
    """What each mask covers of its frame (G, 4), as (G, size, size) uint8 cells."""
    cells = torch.zeros(len(masks), size, size, dtype=torch.uint8)
    for number, (mask, frame) in enumerate(zip(masks, frames, strict=True)):
        if mask.pixels is None:
            cells[number] = rasterize(mask.points, frame, size)
        else:
            cells[number] = _resampled(mask, frame, (size, size))
    return cells


def pixel_boxes(masks: Sequence[ObjectMask], size: tuple[int, int]) -> Tensor:
    """Boxes (G, 4) of the pixels that masks cover in an image of `size`, zeros for no pixel.

    From the first column and row up to the end of the last. Polygons are filled as pycocotools
    does; otherwise a pixel is the nearest of the object's own.
    """
    boxes = torch.zeros(len(masks), 4)
    for number, mask in enumerate(masks):
        if mask.pixels is None:
            x, y, width, height = pycocotools.mask.toBbox(_encoded(mask.points, size))
            boxes[number] = torch.tensor([x, y, x + width, y + height])
        else:
            boxes[number] = _box_of_ones(mask, size)
    return boxes


def outline_boxes(masks: Sequence[ObjectMask], size: tuple[int, int]) -> Tensor:
    """Boxes (G, 4) of the part of each mask's outline in an image of `size`, zeros for none.

    Not of whole pixels, but for masks that are pixels: the nearest of the object's own.
    """
    boxes = torch.zeros(len(masks), 4)
    for number, mask in enumerate(masks):
        if mask.pixels is not None:
            boxes[number] = _box_of_ones(mask, size)
            continue
        parts = [_within(points.double(), size) for points in mask.points]
        inside = torch.cat(parts) if parts else torch.zeros(0, 2)
        if len(inside):
            boxes[number] = torch.cat([inside.amin(0), inside.amax(0)])
    return boxes


def _within(polygon: Tensor, size: tuple[int, int]) -> Tensor:
    """Points (P', 2) that bound the part of a polygon (P, 2) that lies in an image of `size`.

    They are the ends of what is left of its edges, and the image's corners that it covers.
    """
    limit = polygon.new_tensor([size[1], size[0]])
    if (polygon >= 0).all() and (polygon <= limit).all():
        return polygon
    start, step = polygon, polygon.roll(-1, 0) - polygon
    # The parts 0 to 1 of an edge at which it crosses the lines of the image's sides, on each axis.
    crossings = torch.stack([-start / step, (limit - start) / step])  # (2, P, 2)
    enters, leaves = crossings.amin(0), crossings.amax(0)
    # An edge along an axis never crosses the two sides there: it is all between them, or not.
    is_parallel, is_between = step == 0, (start > 0) & (start < limit)
    enters = torch.where(is_parallel, torch.where(is_between, -torch.inf, torch.inf), enters)
    leaves = torch.where(is_parallel, torch.inf, leaves)
    first, last = enters.amax(1).clamp(min=0), leaves.amin(1).clamp(max=1)  # (P,)
    kept = first < last
    ends = [start[kept] + part[kept, None] * step[kept] for part in (first, last)]
    corners = limit * polygon.new_tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    # A polygon that ends at the image's side covers the corner: looked at a hair further inside.
    return torch.cat([*ends, corners[_covers(polygon, corners.lerp(limit / 2, 1e-6))]])


def _covers(polygon: Tensor, points: Tensor) -> Tensor:
    """Whether a polygon (P, 2) covers points (N, 2): a ray to the right crosses an odd number."""
    (x1, y1), (x2, y2) = polygon.unbind(1), polygon.roll(-1, 0).unbind(1)
    x, y = points[:, :1], points[:, 1:]  # (N, 1)
    straddles = (y1 > y) != (y2 > y)  # (N, P)
    at = x1 + (y - y1) / (y2 - y1) * (x2 - x1)
    return (straddles & (x < at)).sum(1) % 2 == 1


def _box_of_ones(mask: ObjectMask, size: tuple[int, int]) -> Tensor:
    x1, y1, x2, y2 = mask.extent.tolist()
    left, top = max(math.floor(x1), 0), max(math.floor(y1), 0)
    right, bottom = min(math.ceil(x2), size[1]), min(math.ceil(y2), size[0])
    frame = torch.tensor([left, top, right, bottom])
    cells = _resampled(mask, frame, (max(bottom - top, 0), max(right - left, 0)))
    rows, columns = torch.nonzero(cells, as_tuple=True)
    if not len(rows):
        return torch.zeros(4)
    low, high = torch.stack([columns.min(), rows.min()]), torch.stack([columns.max(), rows.max()])
    return torch.cat([low, high + 1]) + frame[:2].repeat(2)


def pixels_of(mask: ObjectMask, frame: tuple[int, int, int, int]) -> Tensor:
    """What a mask covers of a frame of whole pixels x1, y1, x2, y2, as (h, w) uint8."""
    x1, y1, x2, y2 = frame
    if mask.pixels is not None:
        return _resampled(mask, torch.tensor(frame), (y2 - y1, x2 - x1))
    origin = torch.tensor([x1, y1], dtype=torch.float32)
    rle = _encoded([points - origin for points in mask.points], (y2 - y1, x2 - x1))
    return torch.from_numpy(pycocotools.mask.decode(rle))


def _resampled(mask: ObjectMask, frame: Tensor, size: tuple[int, int]) -> Tensor:
    """The pixels nearest to the cells of a frame (4,), `size` of them; zero beyond the pixels."""
    assert mask.pixels is not None
    height, width = mask.pixels.shape
    first, right, below = mask.points[0].double()
    (right_x, right_y), (below_x, below_y) = (right - first).tolist(), (below - first).tolist()
    area = right_x * below_y - right_y * below_x
    if area == 0:
        return torch.zeros(size, dtype=torch.uint8)
    x1, y1, x2, y2 = frame.double()
    x = x1 + (torch.arange(size[1]) + 0.5) * (x2 - x1) / size[1] - first[0]
    y = (y1 + (torch.arange(size[0]) + 0.5) * (y2 - y1) / size[0] - first[1])[:, None]
    column = ((x * below_y - y * below_x) * width / area).floor().long()  # (cells down, right)
    row = ((y * right_x - x * right_y) * height / area).floor().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    cells: Tensor = mask.pixels[row.clamp(0, height - 1), column.clamp(0, width - 1)] * inside
    return cells
