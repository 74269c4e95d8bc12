"""Poolers: the features of a RoI at a fixed size.

R RoIs, C channels, P bins a side.
"""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

from mrcnn_lightning.ops.precision import at_least_float32
from mrcnn_lightning.ops.roi_align import assign_levels, crop_and_resize, roi_align
from mrcnn_lightning.user_error import UserError


def _levels(strides: Sequence[int]) -> list[int]:
    """Log2 of the levels' strides."""
    return [stride.bit_length() - 1 for stride in strides]


class RoIAlign(nn.Module):
    """RoIAlign (Mask R-CNN, section 3) on the level that suits the RoI's size (FPN, equation 1).

    Args:
        strides: of the levels that RoIs are cut from, powers of two.
        output_size: bins a side.
        sampling_ratio: bilinear samples a bin and side; 0 is one a cell, as many as the RoI is
            large.
        aligned: whether the middle of the first pixel is 0.5 (Detectron2) or 0 (torchvision).
        canonical_size: a RoI of this side, in pixels, belongs to the canonical level.
        canonical_level: log2 of that level's stride.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        output_size: int,
        sampling_ratio: int,
        aligned: bool,
        canonical_size: float,
        canonical_level: int,
    ) -> None:
        super().__init__()
        self.strides = list(strides)
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """Features (R, C, P, P), at least float32, of boxes (R, 4) of images `image_index` (R,).

        Features beyond the last stride (the RPN's own levels) are not looked at.
        """
        level_index = assign_levels(
            boxes,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
            levels=_levels(self.strides),
            rounded=False,
        )
        return roi_align(
            features[: len(self.strides)],
            self.strides,
            boxes,
            image_index,
            level_index,
            output_size=self.output_size,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )


class CropAndResize(nn.Module):
    """One bilinear sample a bin with corners aligned, on the level nearest to the RoI's size.

    Args:
        strides: of the levels that RoIs are cut from, powers of two.
        output_size: bins a side.
        canonical_size: a RoI of this side, in pixels, belongs to the canonical level.
        canonical_level: log2 of that level's stride.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        output_size: int,
        canonical_size: float,
        canonical_level: int,
    ) -> None:
        super().__init__()
        self.strides = list(strides)
        self.output_size = output_size
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """As `RoIAlign`."""
        level_index = assign_levels(
            boxes,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
            levels=_levels(self.strides),
            rounded=True,
        )
        return crop_and_resize(
            features[: len(self.strides)],
            self.strides,
            boxes,
            image_index,
            level_index,
            output_size=self.output_size,
        )


class RoIPool(nn.Module):
    """The largest value in each bin (Fast R-CNN, section 2.1), of a single level.

    Args:
        strides: of the level.
        output_size: bins a side.

    Raises:
        UserError: there are several levels.
    """

    def __init__(self, *, strides: Sequence[int], output_size: int) -> None:
        super().__init__()
        if len(strides) != 1:
            raise UserError(
                f"RoIPool cuts from one level, the neck gives {len(strides)}: take RoIAlign, or "
                "the neck SingleLevel"
            )
        self.stride = strides[0]
        self.output_size = output_size

    def forward(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """As `RoIAlign`."""
        level = at_least_float32(features[0])
        rois = torch.cat([image_index[:, None].to(level.dtype), boxes.to(level.dtype)], dim=1)
        pooled: Tensor = torchvision.ops.roi_pool(level, rois, self.output_size, 1 / self.stride)
        return pooled
