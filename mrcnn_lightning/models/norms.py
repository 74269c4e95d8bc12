"""Normalisation layers by name, and convolutions that have one."""

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

NormLayer = Callable[[int], nn.Module]


def _group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups (Wu and He 2018), or as many as divide a slim layer's channels."""
    groups = next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,
    "gn": _group_norm,
}


def norm_layer(norm: str, eps: float) -> NormLayer:
    """What makes a normalisation of some number of channels.

    Raises:
        ValueError: the norm is not one of `NORMS`.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm} is not known: it is one of {', '.join(NORMS)}")
    return partial(NORMS[norm], eps=eps)


def conv_norm_relu(
    in_channels: int, out_channels: int, size: int, *, norm: NormLayer | None, bias: bool
) -> nn.Sequential:
    """A convolution that keeps the map's size, its normalisation if there is one, and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers = [conv, nn.ReLU(inplace=True)]
    return nn.Sequential(*(layers if norm is None else [conv, norm(out_channels), layers[1]]))
