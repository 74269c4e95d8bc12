"""Trunks of the heads: a RoI's pooled features to what its classes and boxes are read from.

R RoIs, C channels, P bins a side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrcnn_lightning.models.norms import conv_norm_relu, norm_layer
from mrcnn_lightning.user_error import UserError


class TwoFC(nn.Module):
    """Two fully connected layers (FPN, section 5.2).

    Args:
        in_channels: of the pooled features.
        size: P.
        hidden: units of both layers.
    """

    def __init__(self, *, in_channels: int, size: int, hidden: int) -> None:
        super().__init__()
        self.out_channels = hidden
        self.fc1 = nn.Linear(in_channels * size**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, P, P) to (R, hidden)."""
        hidden = F.relu(self.fc1(pooled.flatten(1)), inplace=True)
        return F.relu(self.fc2(hidden), inplace=True)


def _convs(
    in_channels: int, num_convs: int, hidden: int, *, norm: str | None, norm_eps: float, bias: bool
) -> nn.Sequential:
    """3x3 convolutions with their norms and ReLUs.

    Raises:
        UserError: there is no such norm, or no such number.
    """
    if num_convs < 0:
        raise UserError(f"num_convs={num_convs}: give 0 or more")
    make_norm = None if norm is None else norm_layer(norm, norm_eps)
    widths = [in_channels] + [hidden] * num_convs
    return nn.Sequential(
        *(conv_norm_relu(widths[i], hidden, 3, norm=make_norm, bias=bias) for i in range(num_convs))
    )


class Convs(nn.Module):
    """3x3 convolutions (Mask R-CNN, figure 4).

    Args:
        in_channels: of the pooled features.
        size: P.
        num_convs: convolutions; none leaves the features as they are.
        hidden: their channels; None is as many as come in.
        norm: after each of them, see `NORMS`, or None.
        norm_eps: of the norm.
        bias: whether the convolutions have biases.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        size: int,
        num_convs: int,
        hidden: int | None,
        norm: str | None,
        norm_eps: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.size = size
        hidden = hidden or in_channels
        self.out_channels = hidden if num_convs else in_channels
        self.convs = _convs(in_channels, num_convs, hidden, norm=norm, norm_eps=norm_eps, bias=bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, P, P) to (R, hidden, P, P)."""
        features: Tensor = self.convs(pooled)
        return features


class ConvsFC(nn.Module):
    """3x3 convolutions and a fully connected layer (Group Normalization, section 4.2).

    Args:
        in_channels: of the pooled features.
        size: P.
        num_convs: convolutions.
        conv_hidden: their channels; None is as many as come in.
        hidden: units of the fully connected layer.
        norm: after each convolution, see `NORMS`, or None.
        norm_eps: of the norm.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        size: int,
        num_convs: int,
        conv_hidden: int | None,
        hidden: int,
        norm: str | None,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.out_channels = hidden
        conv_hidden = conv_hidden or in_channels
        self.convs = _convs(
            in_channels, num_convs, conv_hidden, norm=norm, norm_eps=norm_eps, bias=norm is None
        )
        self.fc1 = nn.Linear((conv_hidden if num_convs else in_channels) * size**2, hidden)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, P, P) to (R, hidden)."""
        return F.relu(self.fc1(self.convs(pooled).flatten(1)))


class NormedTwoFC(nn.Module):
    """Two fully connected layers with norms, written as convolutions (Matterport's).

    Args:
        in_channels: of the pooled features.
        size: P.
        hidden: channels of both layers.
        norm: after each of them, see `NORMS`.
        norm_eps: of the norm.
    """

    def __init__(
        self, *, in_channels: int, size: int, hidden: int, norm: str, norm_eps: float
    ) -> None:
        super().__init__()
        self.out_channels = hidden
        make_norm = norm_layer(norm, norm_eps)
        self.conv1, self.bn1 = nn.Conv2d(in_channels, hidden, size), make_norm(hidden)
        self.conv2, self.bn2 = nn.Conv2d(hidden, hidden, 1), make_norm(hidden)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, P, P) to (R, hidden)."""
        hidden = F.relu(self.bn1(self.conv1(pooled)))
        return F.relu(self.bn2(self.conv2(hidden))).flatten(1)


class Average(nn.Module):
    """The mean over all bins, after a last stage of the backbone (ResNet's C4 form).

    Args:
        in_channels: of the pooled features.
        size: not looked at.
    """

    def __init__(self, *, in_channels: int, size: int) -> None:
        super().__init__()
        self.out_channels = in_channels

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, P, P) to (R, C)."""
        return torch.mean(pooled, dim=(2, 3))
