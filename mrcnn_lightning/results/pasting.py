"""Predicted masks at the size of their boxes, on the host.

N masks, m side of a predicted mask, c = m + 2 with a cell of nothing on every side, H and W of an
image, Q columns of pixels, E edges between what is in a mask and what is not.
"""

import math
from collections.abc import Callable, Iterator
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
    """The pixels along one axis of an image that masks may reach, one mask's after the other's."""

    firsts: Ints  # (N,), places in the image
    lengths: Ints  # (N,), how many
    positions: Floats  # (Q,) of their middles, in cells from the middle of the first, 0 to c - 1
    origins: Floats  # (N,), the position of the first, as if it had no bounds
    steps: Floats  # (N,), from each position to the next, likewise


@dataclass
class Crops:
    """Masks in an image, bilinear between the middles of their cells: their pixels or their edges.

    Args:
        padded: (N, c, c), at least float32.
        rows: of them.
        columns: of them.
        crop: the pixels of one of them, which has the last word.
    """

    padded: Tensor
    rows: Pixels
    columns: Pixels
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
        lengths, tops = self.rows.lengths, self.rows.firsts
        owners, x, positions = _laid_out(self.columns)  # (Q,)
        if not lengths.all():  # masks above or below the image
            has_rows = lengths[owners] > 0
            owners, x, positions = owners[has_rows], x[has_rows], positions[has_rows]
        by_column = self.padded.transpose(1, 2).contiguous().numpy()
        profiles = _between(by_column, owners, positions)  # (Q, c), which start and end with 0
        inside = profiles > THRESHOLD - _UNCLEAR
        surely = profiles > THRESHOLD + _UNCLEAR
        is_unclear = np.zeros(len(self), dtype=np.bool_)
        if np.count_nonzero(surely) != np.count_nonzero(inside):
            is_unclear[owners[(inside != surely).any(axis=1)]] = True
        changes = np.flatnonzero(inside.ravel()[1:] != inside.ravel()[:-1])  # (E,)
        column = changes // cells
        cell = changes - column * cells
        numbers = owners[column]
        before = profiles.ravel()[changes].astype(np.float64)
        rise = profiles.ravel()[changes + 1] - before
        crossings = cell + (THRESHOLD - before) / rise
        row, is_near = _first_pixels(self.rows, numbers, crossings, np.abs(rise))
        is_unclear[numbers[is_near]] = True
        places = (x * height + tops[owners])[column] + row
        return numbers, places, np.flatnonzero(is_unclear).tolist()


Paste = Callable[[Tensor, Tensor, tuple[int, int]], Crops]


def _laid_out(pixels: Pixels) -> tuple[Ints, Ints, Floats]:
    """The masks' numbers, places in the image and positions in cells, (Q,)."""
    lengths = pixels.lengths
    numbers: Ints = np.arange(len(lengths)).repeat(lengths)
    ends: Ints = lengths.cumsum()
    places: Ints = np.arange(len(numbers)) + (pixels.firsts - ends + lengths)[numbers]
    return numbers, places, pixels.positions


def _between(masks: Values, numbers: Ints, positions: Floats) -> Values:
    """Rows of some of the masks (N, c, C), between the two next to each position, (Q, C)."""
    cells = masks.shape[1]
    lower = np.minimum(positions.astype(np.int64), cells - 2)
    parts = (positions - lower).astype(masks.dtype)
    rises = masks[:, 1:] - masks[:, :-1]
    steps: Values = rises.reshape(-1, masks.shape[2]).take(lower + numbers * (cells - 1), axis=0)
    steps *= parts[:, None]
    steps += masks.reshape(-1, masks.shape[2]).take(lower + numbers * cells, axis=0)
    return steps


def _first_pixels(
    pixels: Pixels, numbers: Ints, crossings: Floats, slopes: Floats
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The first pixels behind crossings, and whether there is one as good as on the crossing, (E,).

    Args:
        pixels: of the masks.
        numbers: (E,) of masks.
        crossings: (E,) in cells.
        slopes: (E,) of the mask there, a cell.
    """
    lengths = pixels.lengths
    steps = (crossings - pixels.origins[numbers]) / pixels.steps[numbers]
    nearest: Ints = np.rint(steps).astype(np.int64)
    np.maximum(nearest, 0, out=nearest)
    np.minimum(nearest, (lengths - 1)[numbers], out=nearest)
    beyond = pixels.positions[(lengths.cumsum() - lengths)[numbers] + nearest] - crossings
    return nearest + (beyond < 0), np.abs(beyond) * slopes <= _UNCLEAR


def resized_crops(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Crops:
    """Masks (N, m, m) at the size of their boxes (N, 4), cut to an image of `size` (H, W).

    Bit for bit the pixels that torchvision's `paste_masks_in_image` sets above one half, without
    the canvas: for each mask its crop (h, w), and the row and column where it goes. CPU tensors.
    """
    padded = F.pad(at_least_float32(masks), (1, 1, 1, 1))  # (N, c, c)
    frames = _enlarged(boxes, masks.shape[-1])
    corners = frames.tolist()
    cells = padded.shape[-1]

    def crop(number: int) -> Crop:
        x1, y1, x2, y2 = corners[number]
        sides = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        pixels = F.interpolate(
            padded[number][None, None], sides, mode="bilinear", align_corners=False
        )
        top, left = max(y1, 0), max(x1, 0)
        bottom, right = min(y1 + sides[0], size[0]), min(x1 + sides[1], size[1])
        seen = pixels[0, 0, top - y1 : max(bottom - y1, 0), left - x1 : max(right - x1, 0)]
        return (seen > THRESHOLD).numpy(), top, left

    x1, y1, x2, y2 = frames.T
    rows = _resized(y1, y2, size[0], cells, padded.dtype)
    return Crops(padded, rows, _resized(x1, x2, size[1], cells, padded.dtype), crop)


def _resized(starts: Ints, ends: Ints, size: int, cells: int, dtype: torch.dtype) -> Pixels:
    """The pixels of an image from some to others, where masks start and end, (N,)."""
    nums = np.maximum(ends - starts + 1, 1)
    firsts = np.maximum(starts, 0)
    skipped = firsts - starts
    lengths = np.maximum(np.minimum(nums, size - starts) - skipped, 0)
    positions = [
        _positions(num, cells, dtype)[first : first + length]
        for num, first, length in zip(
            nums.tolist(), skipped.tolist(), lengths.tolist(), strict=True
        )
    ]
    steps = cells / nums
    return Pixels(
        firsts,
        lengths,
        np.concatenate([np.zeros(0), *positions]),
        (skipped + 0.5) * steps - 0.5,
        steps,
    )


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

    x1, y1, x2, y2 = boxes.double().numpy().T
    cells = masks.shape[-1]
    rows, columns = _sampled(y1, y2, size[0], cells), _sampled(x1, x2, size[1], cells)
    return Crops(F.pad(masks, (1, 1, 1, 1)), rows, columns, crop)


def _reach(start: float, end: float, size: int) -> tuple[int, int]:
    """The first pixel of an image that a mask can reach, and the one after the last."""
    first = min(max(math.floor(start) - 1, 0), size)
    return first, min(max(math.ceil(end) + 1, first), size)


def _sampled(starts: Floats, ends: Floats, size: int, cells: int) -> Pixels:
    """The pixels that masks (N,) of so many cells, with one more on both sides, can reach."""
    firsts = (np.floor(starts) - 1).clip(0, size).astype(np.int64)
    lengths = (np.ceil(ends) + 1).clip(firsts, size).astype(np.int64) - firsts
    steps = cells / np.maximum(ends - starts, MIN_SIDE)
    origins = (firsts + 0.5 - starts) * steps + 0.5
    pixels = Pixels(firsts, lengths, np.zeros(lengths.sum()), origins, steps)
    numbers, places, positions = _laid_out(pixels)
    positions += (places + 0.5 - starts[numbers]) * steps[numbers] + 0.5
    positions.clip(0, cells + 1, out=positions)
    return pixels


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
