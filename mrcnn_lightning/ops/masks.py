"""Masks: training targets cut from mini-masks, predicted masks pasted and run-length encoded.

N masks, G objects of an image, M mini-mask side, m side of a predicted mask, H and W of an image.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pycocotools.mask
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from mrcnn_lightning.ops.boxes import MIN_SIDE
from mrcnn_lightning.ops.precision import at_least_float32
from mrcnn_lightning.ops.roi_align import crop_and_resize

# A cell of a predicted mask belongs to the object above this probability.
THRESHOLD = 0.5


def mask_targets(masks: Tensor, frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What the mask head should say: each mask seen through its RoI, (N, size, size) in [0, 1].

    RoIAlign of the mask with aligned pixel centres and as many samples as a bin has cells.

    Args:
        masks: (N, M, M) of zeros and ones; a cell covers its share of the frame.
        frames: (N, 4) in pixels.
        boxes: (N, 4), the RoIs, in pixels.
        size: cells a side.
    """
    rois = _in_cells(masks, frames, boxes)
    return torchvision.ops.roi_align(masks[:, None].to(boxes.dtype), rois, size, aligned=True)[:, 0]


def binary_mask_targets(masks: Tensor, frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """As `mask_targets`, 1 from a half on and 0 below (Detectron2)."""
    return (mask_targets(masks, frames, boxes, size) >= THRESHOLD).to(boxes.dtype)


def cropped_mask_targets(masks: Tensor, frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """As `mask_targets`, by crop-and-resize of the mini-mask, rounded (Matterport's)."""
    number = torch.arange(len(masks), device=boxes.device)
    cropped = crop_and_resize(
        [masks[:, None].to(boxes.dtype)],
        [1],
        _in_cells(masks, frames, boxes)[:, 1:],
        number,
        torch.zeros_like(number),
        output_size=size,
    )
    return cropped[:, 0].round()


def _in_cells(masks: Tensor, frames: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (N, 4) in cells of their own masks (N, M, M), with the masks' numbers: (N, 5)."""
    x1, y1, x2, y2 = frames.unbind(1)
    origins = torch.stack([x1, y1, x1, y1], dim=1)
    x_cells, y_cells = masks.shape[2] / (x2 - x1), masks.shape[1] / (y2 - y1)
    cells_per_pixel = torch.stack([x_cells, y_cells, x_cells, y_cells], dim=1)
    number = torch.arange(len(masks), device=boxes.device, dtype=boxes.dtype)
    return torch.cat([number[:, None], (boxes - origins) * cells_per_pixel], dim=1)


def _enlarged(boxes: Tensor, cells: int) -> npt.NDArray[np.int64]:
    """Whole-pixel boxes (N, 4) with room for one more cell on every side of the mask."""
    centers, half_sides = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half_sides = half_sides * ((cells + 2) / cells)
    enlarged = torch.cat([centers - half_sides, centers + half_sides], dim=1)
    return enlarged.to(torch.int64).numpy()


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


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], crops: Crops = resized_crops
) -> Tensor:
    """Masks (N, m, m) pasted at their boxes (N, 4) into whole images: (N, H, W) bool."""
    canvas = np.zeros((len(masks), *size), dtype=np.bool_)
    for image, (crop, top, left) in zip(canvas, crops(masks, boxes, size), strict=True):
        image[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return torch.from_numpy(canvas)


def encode_crop(crop: npt.NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> bytes:
    """COCO's compressed run lengths of an image of `size` whose only ones are in `crop` (h, w)."""
    height, width = size
    # Column after column with a zero below each, so that no run goes on into the next column.
    step = crop.shape[0] + 1
    cells = np.zeros(crop.shape[1] * step + 1, dtype=np.bool_)
    cells[1:].reshape(-1, step)[:, :-1] = crop.T
    changes = np.flatnonzero(cells[1:] != cells[:-1])  # start, end, start, end, ...
    column, row = np.divmod(changes, step)
    bounds = (left + column) * height + top + row
    if crop.shape[0] == height:
        # A run that reaches the bottom goes on where the next column starts at the top.
        joins = np.flatnonzero(bounds[1:-1:2] == bounds[2::2]) * 2 + 1
        bounds = np.delete(bounds, [joins, joins + 1])
    counts = [*np.diff(bounds, prepend=0).tolist(), height * width - int(bounds[-1:].sum())]
    if counts[-1] == 0:
        counts.pop()
    rle = {"counts": counts, "size": [height, width]}
    return pycocotools.mask.frPyObjects(rle, height, width)["counts"]


def encode_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], crops: Crops) -> list[bytes]:
    """Masks (N, m, m) pasted at their boxes (N, 4) and run-length encoded, without a canvas."""
    return [encode_crop(*crop, size) for crop in crops(masks, boxes, size)]


def decode_crops(rles: Sequence[bytes], size: tuple[int, int]) -> Iterator[Crop]:
    """The crops of an image of `size` that hold all ones of masks, one after the other."""
    for rle in rles:
        whole = {"size": list(size), "counts": rle}
        left, top, width, height = (int(side) for side in pycocotools.mask.toBbox(whole))
        mask = pycocotools.mask.decode(whole)[top : top + height, left : left + width]
        yield mask.astype(np.bool_), top, left


def decode_masks(rles: list[bytes], size: tuple[int, int]) -> Tensor:
    """Compressed run lengths of an image of `size` (H, W) as masks (N, H, W) bool."""
    if not rles:
        return torch.zeros(0, *size, dtype=torch.bool)
    masks = pycocotools.mask.decode([{"size": list(size), "counts": rle} for rle in rles])
    return torch.from_numpy(masks).permute(2, 0, 1).bool()
