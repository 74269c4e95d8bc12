"""Backbones: the image to feature maps C2..C5 at strides 4, 8, 16 and 32, on torchvision's blocks.

B images, C channels of a map.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models.weights import load_backbone

STRIDES = (4, 8, 16, 32)
RESNET_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], Sequence[int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
NORMS: dict[str, Callable[..., nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
}


def norm_layer(norm: str, eps: float) -> Callable[[int], nn.Module]:
    """What makes a normalisation of some number of channels.

    Raises:
        ValueError: the norm is not one of `NORMS`.
    """
    if norm not in NORMS:
        raise ValueError(f"backbone.norm={norm} is not known: it is one of {', '.join(NORMS)}")
    return partial(NORMS[norm], eps=eps)


class Backbone(nn.Module):
    """A chain of named layers that hands out four of its feature maps and keeps some stages fixed.

    Args:
        body: the layers in order.
        stages: five groups of layer names, the stem first; the last four end in C2..C5.
        out_channels: of C2..C5.
        trainable_stages: how many stages, counted from the last, are trained (0 to 5). The others
            keep their weights and their batch-norm statistics.

    Raises:
        ValueError: `trainable_stages` is out of range.
    """

    def __init__(
        self,
        *,
        body: nn.Sequential,
        stages: Sequence[Sequence[str]],
        out_channels: Sequence[int],
        trainable_stages: int,
    ) -> None:
        super().__init__()
        if not 0 <= trainable_stages <= len(stages):
            raise ValueError(
                f"backbone.trainable_stages={trainable_stages} is not between 0 and {len(stages)}"
            )
        self.body = body
        self.out_channels = list(out_channels)
        self.strides = list(STRIDES)
        self._map_layers = {stage[-1] for stage in stages[1:]}
        frozen_stages = stages[: len(stages) - trainable_stages]
        self._frozen_layers = [name for stage in frozen_stages for name in stage]
        for name in self._frozen_layers:
            body.get_submodule(name).requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps C2..C5 (B, C, H / stride, W / stride) of normalised images (B, 3, H, W)."""
        maps, features = [], images
        for name, layer in self.body.named_children():
            features = layer(features)
            if name in self._map_layers:
                maps.append(features)
        return maps

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen stages stay in evaluation mode: their running statistics do not move."""
        super().train(mode)
        for name in self._frozen_layers:
            self.body.get_submodule(name).eval()
        return self


def _resnet_stage(
    block: type[BasicBlock] | type[Bottleneck],
    num_blocks: int,
    in_channels: int,
    channels: int,
    stride: int,
    norm: Callable[[int], nn.Module],
) -> nn.Sequential:
    out_channels = channels * block.expansion
    downsample = None
    if stride != 1 or in_channels != out_channels:
        projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        downsample = nn.Sequential(projection, norm(out_channels))
    first = block(in_channels, channels, stride, downsample, norm_layer=norm)
    others = [block(out_channels, channels, norm_layer=norm) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *others)


def resnet(
    *,
    depth: int,
    width: int,
    norm: str,
    norm_eps: float,
    trainable_stages: int,
    weights: str | None,
) -> Backbone:
    """ResNet (He et al. 2016; torchvision's form, stride on the 3x3 convolution).

    Args:
        depth: 18, 34, 50 or 101.
        width: channels of the stem; 64 is the paper's, less is a slim one of our own.
        norm: `frozen_bn` or `bn`.
        norm_eps: 1e-5; torchvision's COCO_V1 detectors want 0.
        trainable_stages: 0 to 5, counted from the last; 5 trains the stem too.
        weights: a name of torchvision's weights such as IMAGENET1K_V1, a file, or null.

    Raises:
        ValueError: an argument is out of range, or the weights do not load or do not fit.
    """
    if depth not in RESNET_BLOCKS:
        raise ValueError(f"backbone.depth={depth} is not one of {list(RESNET_BLOCKS)}")
    block, num_blocks = RESNET_BLOCKS[depth]
    make_norm = norm_layer(norm, norm_eps)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
        bn1=make_norm(width),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
    )
    channels = [width * 2**stage for stage in range(4)]
    in_channels = width
    for stage, (num, out) in enumerate(zip(num_blocks, channels, strict=True)):
        stride = 1 if stage == 0 else 2
        layers[f"layer{stage + 1}"] = _resnet_stage(block, num, in_channels, out, stride, make_norm)
        in_channels = out * block.expansion
    for layer in nn.Sequential(layers).modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    backbone = Backbone(
        body=nn.Sequential(layers),
        stages=[
            ["conv1", "bn1", "relu", "maxpool"],
            ["layer1"],
            ["layer2"],
            ["layer3"],
            ["layer4"],
        ],
        out_channels=[out * block.expansion for out in channels],
        trainable_stages=trainable_stages,
    )
    if weights is not None:
        load_backbone(backbone.body, weights, architecture=f"resnet{depth}")
    return backbone


def mobilenet_v2(
    *, norm: str, norm_eps: float, trainable_stages: int, weights: str | None
) -> Backbone:
    """MobileNetV2 (Sandler et al. 2018), C5 after the last 1x1 convolution.

    Args:
        norm: `frozen_bn` or `bn`.
        norm_eps: 1e-5.
        trainable_stages: 0 to 5, counted from the last; 5 trains the stem too.
        weights: a name of torchvision's weights such as IMAGENET1K_V1, a file, or null.

    Raises:
        ValueError: an argument is out of range, or the weights do not load or do not fit.
    """
    body = torchvision.models.mobilenet_v2(norm_layer=norm_layer(norm, norm_eps)).features
    ends = [2, 4, 7, 14, 19]  # a stage is all layers of one stride; here the next one begins
    stages = [
        [str(layer) for layer in range(start, end)]
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    backbone = Backbone(
        body=body,
        stages=stages,
        out_channels=[24, 32, 96, 1280],
        trainable_stages=trainable_stages,
    )
    if weights is not None:
        load_backbone(body, weights, architecture="mobilenet_v2")
    return backbone
