"""Masks on whole canvases, which the project itself never makes."""

import numpy as np
import torch
from torch import Tensor

from mrcnn_lightning.results.pasting import Paste, resized_crops


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], crops: Paste = resized_crops
) -> Tensor:
    """Masks (N, m, m) pasted at their boxes (N, 4) into whole images: (N, H, W) bool."""
    canvas = np.zeros((len(masks), *size), dtype=np.bool_)
    for image, (crop, top, left) in zip(canvas, crops(masks, boxes, size), strict=True):
        image[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return torch.from_numpy(canvas)
