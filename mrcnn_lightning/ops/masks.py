"""What the mask head should say: targets cut from mini-masks.

N masks, M mini-mask side.
"""

import torch
import torchvision
from torch import Tensor

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
    cut: Tensor = torchvision.ops.roi_align(
        masks[:, None].to(boxes.dtype), rois, size, aligned=True
    )
    return cut[:, 0]


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
