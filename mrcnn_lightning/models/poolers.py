"""Poolers: the features of a RoI at a fixed size.

B images, R RoIs an image, N RoIs of the batch, C channels, P bins a side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mrcnn_lightning.ops.roi_align import assign_levels, roi_align


class RoIAlign(nn.Module):
    """RoIAlign (Mask R-CNN, section 3) on the level that suits the RoI's size (FPN, equation 1).

    Args:
        strides: of the levels that RoIs are cut from, powers of two.
        output_size: bins a side.
        sampling_ratio: bilinear samples a bin and side.
        canonical_size: a RoI of this side, in pixels, belongs to the canonical level.
        canonical_level: log2 of that level's stride.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        output_size: int,
        sampling_ratio: int,
        canonical_size: float,
        canonical_level: int,
    ) -> None:
        super().__init__()
        self.strides = list(strides)
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level
        self.levels = range(strides[0].bit_length() - 1, strides[-1].bit_length())

    def forward(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features (N, C, P, P), at least float32, of boxes (N, 4) of images `image_index` (N,).

        Features beyond the last stride (the RPN's own levels) are not looked at.
        """
        level_index = assign_levels(
            boxes,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
            levels=self.levels,
        )
        return roi_align(
            features[: len(self.strides)],
            self.strides,
            boxes,
            image_index,
            level_index,
            output_size=self.output_size,
            sampling_ratio=self.sampling_ratio,
        )


def image_indices(boxes: Tensor) -> Tensor:
    """The image (B * R,) that each of the boxes (B, R, 4), flattened, belongs to."""
    return torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
