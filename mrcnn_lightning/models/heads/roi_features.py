"""What every head starts with: the features of RoIs.

B images, R RoIs, C channels, P bins a side.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mrcnn_lightning.models.roi_stage import RoIStage


class RoIFeatures:
    """Pools RoIs from the levels, and sends them through the backbone's stage for RoIs.

    Args:
        strides: of the levels that RoIs are cut from.
        roi_stage: of the backbone, or one that does nothing.
        pooler: makes the pooler from the strides.
    """

    def __init__(
        self, *, strides: Sequence[int], roi_stage: RoIStage, pooler: Callable[..., Any]
    ) -> None:
        self.pooler = pooler(strides=strides)
        self.roi_stage = roi_stage
        # What comes out: channels, and bins a side.
        self.out_channels = roi_stage.out_channels
        self.size = roi_stage.size(self.pooler.output_size)

    def __call__(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """(N, C, P, P) of boxes (N, 4), each in the image of its index (N,)."""
        return self.roi_stage(self.pooler(features, boxes, image_index))

    def of_images(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(B * R, C, P, P) of boxes (B, R, 4)."""
        image = torch.arange(boxes.shape[0], device=boxes.device).repeat_interleave(boxes.shape[1])
        return self(features, boxes.flatten(0, 1), image)
