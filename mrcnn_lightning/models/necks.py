"""Necks: the backbone's maps to the levels that the RPN and the RoI heads see.

B images, C channels.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mrcnn_lightning.models.norms import norm_layer


class FPN(nn.Module):
    """Feature pyramid P2..P6 (Lin et al. 2017); P6 is P5 subsampled, for the RPN alone.

    Args:
        in_channels: of the backbone's maps.
        strides: of the backbone's maps.
        out_channels: of every level.
        norm: after each convolution, see `NORMS`, or None.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        strides: Sequence[int],
        out_channels: int,
        norm: str | None,
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramidNetwork(
            list(in_channels),
            out_channels,
            LastLevelMaxPool(),
            norm_layer=None if norm is None else norm_layer(norm, 1e-5),
        )
        self.out_channels = out_channels
        self.strides = [*strides, 2 * strides[-1]]
        self.roi_strides = list(strides)  # of the levels that RoIs are cut from

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Levels P2..P6, each (B, C, height, width), of the maps C2..C5."""
        named = OrderedDict((str(level), feature) for level, feature in enumerate(features))
        return list(self.pyramid(named).values())


class SingleLevel(nn.Module):
    """The backbone's last map as it is: C4, or a dilated C5.

    Args:
        in_channels: of the backbone's maps.
        strides: of the backbone's maps.
    """

    def __init__(self, *, in_channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = in_channels[-1]
        self.strides = [strides[-1]]
        self.roi_strides = [strides[-1]]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """The last of the maps, (B, C, height, width)."""
        return [features[-1]]
