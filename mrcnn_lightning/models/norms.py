"""Normalisation layers by name, and convolutions that have one."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.user_error import UserError

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
        UserError: the norm is not one of `NORMS`.
    """
    if norm not in NORMS:
        raise UserError(f"norm={norm} is not known: it is one of {', '.join(NORMS)}")
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


def conv_norm(conv: nn.Conv2d, norm: nn.Module, features: Tensor) -> Tensor:
    """A convolution and its normalisation; fixed statistics go into the convolution's weights.

    That is the same up to rounding, and spares scaling a map. A small map is scaled all the same:
    it is less than the weights, of which training would have to keep a second copy.
    """
    is_frozen = type(norm) is FrozenBatchNorm2d
    is_batch_norm = type(norm) is nn.BatchNorm2d and norm.affine and norm.running_var is not None
    is_fixed = is_frozen or (is_batch_norm and not norm.training)
    is_plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros"  # others may do more
    cells = features[:, 0].numel() // (conv.stride[0] * conv.stride[1])
    is_watched = bool(conv._forward_hooks or norm._forward_hooks)
    # Compiled parts have one way for all sizes.
    is_small = not torch.compiler.is_compiling() and cells < conv.weight[0].numel()
    if not is_fixed or not is_plain or is_small or is_watched:
        normed: Tensor = norm(conv(features))
        return normed
    assert isinstance(norm, FrozenBatchNorm2d | nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return F.conv2d(
        features,
        conv.weight * scale[:, None, None, None],
        shift if conv.bias is None else shift + conv.bias * scale,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
