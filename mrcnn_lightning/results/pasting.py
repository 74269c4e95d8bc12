"""Predicted masks at the size of their boxes, on the host.

N masks, m side of a predicted mask, c = m + 2 with a cell of nothing on every side, H and W of an
image, Q columns of pixels, E edges between what is in a mask and what is not.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mrcnn_lightning.ops.boxes import MIN_SIDE
from mrcnn_lightning.ops.masks import THRESHOLD
from mrcnn_lightning.ops.precision import at_least_float32

# A mask's ones in a part of an image (h, w), and the row and column where that part starts.
Crop = tuple[npt.NDArray[np.bool_], int, int]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.floating[Any]]
# Between 0 and 1, float32 interpolates here and in torch with less than 11 roundings of 2**-25.
_UNCLEAR = 5e-7


@dataclass
class Pixels:
    """The pixels of an image along one axis that a mask may reach."""

    first: int
    positions: Floats  # of their middles, in cells from the middle of the first cell, 0 to c - 1
    origin: float  # of the first, as if it had no bounds
    step: float  # from each to the next, likewise


_NO_PIXELS = Pixels(0, np.zeros(0), 0.0, 1.0)


@dataclass
class Crops:
    """Masks in an image, bilinear between the middles of their cells: their pixels or their edges.

    Args:
        padded: (N, c, c), at least float32.
        rows: of each.
        columns: of each.
        crop: the pixels of one of them, which has the last word.
    """

    padded: Tensor
    rows: list[Pixels]
    columns: list[Pixels]
    crop: Callable[[int], Crop]

    def __len__(self) -> int:
        return len(self.padded)

    def __iter__(self) -> Iterator[Crop]:
        return (self.crop(number) for number in range(len(self)))

    def edges(self, height: int) -> tuple[Ints, Ints, list[int]]:
        """Where masks start and end, column after column of the image, without their pixels.

        Along a column a mask is linear from cell to cell, so it crosses the threshold at most once
        between two of them.

        Args:
            height: of the image.

        Returns:
            numbers: (E,) of masks.
            places: (E,) in the image's pixels, numbered column after column; of each mask in order.
                Two edges at one place are none.
            unclear: numbers of masks whose edges may be wrong, since rounding decides.
        """
        cells = self.padded.shape[-1]
        lengths = np.array([len(each.positions) for each in self.rows])
        columns = [
            x if length else _NO_PIXELS for x, length in zip(self.columns, lengths, strict=True)
        ]
        owners, x, positions = _laid_out(columns)  # (Q,)
        # Nothing above and below a column, so that what the image has cut off ends there.
        by_column = F.pad(self.padded.transpose(1, 2), (1, 1))  # (N, c, c + 2)
        profiles = _between(by_column.numpy(), owners, positions)  # (Q, c + 2)
        inside = profiles > THRESHOLD - _UNCLEAR
        surely = profiles > THRESHOLD + _UNCLEAR
        is_unclear = np.zeros(len(self), dtype=np.bool_)
        if np.count_nonzero(surely) != np.count_nonzero(inside):
            is_unclear[owners[(inside != surely).any(axis=1)]] = True
        changes = np.flatnonzero(inside.ravel()[1:] != inside.ravel()[:-1])  # (E,)
        column = changes // (cells + 2)
        cell = changes - column * (cells + 2)
        numbers = owners[column]
        before = profiles.ravel()[changes].astype(np.float64)
        rise = profiles.ravel()[changes + 1] - before
        crossings = cell - 1 + (THRESHOLD - before) / rise
        row, is_near = _first_pixels(self.rows, numbers, crossings, np.abs(rise))
        at_ends = np.flatnonzero((cell == 0) | (cell == cells))  # cut off by the image
        row[at_ends] = np.where(cell[at_ends] == 0, 0, lengths[numbers[at_ends]])
        is_near[at_ends] = False
        is_unclear[numbers[is_near]] = True
        tops = np.array([each.first for each in self.rows])
        places = (x * height + tops[owners])[column] + row
        return numbers, places, np.flatnonzero(is_unclear).tolist()


Paste = Callable[[Tensor, Tensor, tuple[int, int]], Crops]


def _laid_out(pixels: Sequence[Pixels]) -> tuple[Ints, Ints, Floats]:
    """One after the other: the masks' numbers, places in the image and positions in cells."""
    lengths = np.array([len(each.positions) for each in pixels])
    numbers = np.arange(len(pixels)).repeat(lengths)
    starts = np.array([each.first for each in pixels]) - (lengths.cumsum() - lengths)
    places = np.arange(len(numbers)) + starts[numbers]
    return numbers, places, np.concatenate([each.positions for each in pixels])


def _between(masks: Values, numbers: Ints, positions: Floats) -> Values:
    """Rows of some of the masks (N, c, C), between the two next to each position, (Q, C)."""
    cells = masks.shape[1]
    rows = masks.reshape(-1, masks.shape[2])
    lower = np.minimum(positions.astype(np.int64), cells - 2)
    parts = (positions - lower).astype(masks.dtype)
    lower += numbers * cells
    values: Values = rows[lower]
    steps = rows[lower + 1]
    steps -= values
    steps *= parts[:, None]
    values += steps
    return values


def _first_pixels(
    pixels: Sequence[Pixels], numbers: Ints, crossings: Floats, slopes: Floats
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The first pixels behind crossings, and whether there is one as good as on the crossing, (E,).

    Args:
        pixels: of the masks.
        numbers: (E,) of masks.
        crossings: (E,) in cells.
        slopes: (E,) of the mask there, a cell.
    """
    lengths = np.array([len(each.positions) for each in pixels])
    origins = np.array([each.origin for each in pixels])[numbers]
    steps = np.array([each.step for each in pixels])[numbers]
    nearest = np.rint((crossings - origins) / steps).astype(np.int64)
    np.maximum(nearest, 0, out=nearest)
    np.minimum(nearest, (lengths - 1)[numbers], out=nearest)
    positions = np.concatenate([each.positions for each in pixels])
    beyond = positions[(lengths.cumsum() - lengths)[numbers] + nearest] - crossings
    return nearest + (beyond < 0), np.abs(beyond) * slopes <= _UNCLEAR


def resized_crops(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Crops:
    """Masks (N, m, m) at the size of their boxes (N, 4), cut to an image of `size` (H, W).

    Bit for bit the pixels that torchvision's `paste_masks_in_image` sets above one half, without
    the canvas: for each mask its crop (h, w), and the row and column where it goes. CPU tensors.
    """
    padded = F.pad(at_least_float32(masks), (1, 1, 1, 1))  # (N, c, c)
    frames = _enlarged(boxes, masks.shape[-1]).tolist()
    cells = padded.shape[-1]

    def crop(number: int) -> Crop:
        x1, y1, x2, y2 = frames[number]
        sides = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        pixels = F.interpolate(
            padded[number][None, None], sides, mode="bilinear", align_corners=False
        )
        top, left = max(y1, 0), max(x1, 0)
        bottom, right = min(y1 + sides[0], size[0]), min(x1 + sides[1], size[1])
        seen = pixels[0, 0, top - y1 : max(bottom - y1, 0), left - x1 : max(right - x1, 0)]
        return (seen > THRESHOLD).numpy(), top, left

    rows = [_resized(y1, y2, size[0], cells, padded.dtype) for _, y1, _, y2 in frames]
    columns = [_resized(x1, x2, size[1], cells, padded.dtype) for x1, _, x2, _ in frames]
    return Crops(padded, rows, columns, crop)


def _resized(start: int, end: int, size: int, cells: int, dtype: torch.dtype) -> Pixels:
    """The pixels of an image from one to another, where a mask starts and ends."""
    num = max(end - start + 1, 1)
    first = max(start, 0)
    positions = _positions(num, cells, dtype)
    positions = positions[first - start : max(min(start + num, size) - start, 0)]
    step = cells / num
    return Pixels(first, positions, (first - start + 0.5) * step - 0.5, step)


@lru_cache(maxsize=1024)
def _positions(num: int, cells: int, dtype: torch.dtype) -> Floats:
    """Where torch looks for each of so many pixels in a row of cells, as it rounds."""
    one_hot = torch.eye(cells, dtype=dtype)[None, :, None]  # (1, c, 1, c)
    seen = F.interpolate(one_hot, (1, num), mode="bilinear", align_corners=False)
    weights = seen[0, :, 0].double().numpy()  # (c, num)
    lower = (weights > 0).argmax(axis=0)
    higher = np.minimum(lower + 1, cells - 1)
    part = np.where(higher > lower, np.take_along_axis(weights, higher[None], axis=0)[0], 0)
    positions: Floats = lower + part
    return positions


def sampled_crops(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Crops:
    """As `resized_crops`, each mask sampled at the middles of the image's pixels (Detectron2).

    Bilinear, and fading to zero around the box: half a cell outside of the mask is none left.
    """
    masks = at_least_float32(masks).to(torch.promote_types(masks.dtype, boxes.dtype))
    corners = boxes.tolist()

    def crop(number: int) -> Crop:
        x1, y1, x2, y2 = corners[number]
        mask = masks[number]
        top, rows = _samples(y1, y2, size[0], mask)
        left, columns = _samples(x1, x2, size[1], mask)
        return (rows @ mask @ columns.T >= THRESHOLD).numpy(), top, left

    cells = masks.shape[-1]
    rows = [_sampled(y1, y2, size[0], cells) for _, y1, _, y2 in corners]
    columns = [_sampled(x1, x2, size[1], cells) for x1, _, x2, _ in corners]
    return Crops(F.pad(masks, (1, 1, 1, 1)), rows, columns, crop)


def _reach(start: float, end: float, size: int) -> tuple[int, int]:
    """The first pixel of an image that a mask can reach, and the one after the last."""
    first = min(max(math.floor(start) - 1, 0), size)
    return first, min(max(math.ceil(end) + 1, first), size)


def _sampled(start: float, end: float, size: int, cells: int) -> Pixels:
    """The pixels that a mask of so many cells, with one more on both sides, can reach."""
    first, last = _reach(start, end, size)
    step = cells / max(end - start, MIN_SIDE)
    positions = (np.arange(first, last) + 0.5 - start) * step + 0.5
    return Pixels(first, positions.clip(0, cells + 1), (first + 0.5 - start) * step + 0.5, step)


def _samples(start: float, end: float, size: int, mask: Tensor) -> tuple[int, Tensor]:
    """What the cells of a mask (m, m) are worth to an image's pixels along one axis.

    Args:
        start: of the mask's box, in pixels.
        end: likewise.
        size: pixels of the image.
        mask: of the right type.

    Returns:
        The first pixel that the mask can reach, and weights (pixels, m).
    """
    num = mask.shape[0]
    first, last = _reach(start, end, size)
    pixels = torch.arange(first, last, dtype=mask.dtype)
    cells = (pixels + 0.5 - start) / max(end - start, MIN_SIDE) * num - 0.5
    distance = (cells[:, None] - torch.arange(num, dtype=mask.dtype)).abs()
    return first, (1 - distance).clamp(min=0)


def _enlarged(boxes: Tensor, cells: int) -> npt.NDArray[np.int64]:
    """Whole-pixel boxes (N, 4) with room for one more cell on every side of the mask."""
    centers, half_sides = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half_sides = half_sides * ((cells + 2) / cells)
    enlarged = torch.cat([centers - half_sides, centers + half_sides], dim=1)
    return enlarged.to(torch.int64).numpy()
