"""Predicted masks at the size of their boxes, on the host.

N masks, m side of a predicted mask, H and W of an image.
"""

import math
from collections.abc import Callable

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
Crops = Callable[[Tensor, Tensor, tuple[int, int]], list[Crop]]


def resized_crops(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Crop]:
    """Masks (N, m, m) at the size of their boxes (N, 4), cut to an image of `size` (H, W).

    Bit for bit the pixels that torchvision's `paste_masks_in_image` sets above one half, without
    the canvas: for each mask its crop (h, w), and the row and column where it goes. CPU tensors.
    """
    padded = F.pad(at_least_float32(masks), (1, 1, 1, 1))[:, None]  # (N, 1, m + 2, m + 2)
    crops = []
    for mask, (x1, y1, x2, y2) in zip(padded, _enlarged(boxes, masks.shape[-1]), strict=True):
        height, width = max(int(y2 - y1 + 1), 1), max(int(x2 - x1 + 1), 1)
        pixels = F.interpolate(mask[None], (height, width), mode="bilinear", align_corners=False)
        top, left = max(int(y1), 0), max(int(x1), 0)
        bottom, right = min(int(y1) + height, size[0]), min(int(x1) + width, size[1])
        seen = pixels[0, 0, top - y1 : max(bottom - y1, 0), left - x1 : max(right - x1, 0)]
        crops.append(((seen > THRESHOLD).numpy(), top, left))
    return crops


def sampled_crops(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Crop]:
    """As `resized_crops`, each mask sampled at the middles of the image's pixels (Detectron2).

    Bilinear, and fading to zero around the box: half a cell outside of the mask is none left.
    """
    masks, boxes = at_least_float32(masks), boxes.to(torch.promote_types(masks.dtype, boxes.dtype))
    crops = []
    for mask, (x1, y1, x2, y2) in zip(masks.to(boxes.dtype), boxes.tolist(), strict=True):
        top, rows = _samples(y1, y2, size[0], mask)
        left, columns = _samples(x1, x2, size[1], mask)
        crops.append(((rows @ mask @ columns.T >= THRESHOLD).numpy(), top, left))
    return crops


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
    first = min(max(math.floor(start) - 1, 0), size)
    last = min(max(math.ceil(end) + 1, first), size)
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
