"""ResNet in three forms, ResNeXt and Wide ResNet, on torchvision's blocks.

B images, C channels of a map.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from mrcnn_lightning.models.backbones.backbone import Backbone, Pretrained
from mrcnn_lightning.models.backbones.pixels import Pixels
from mrcnn_lightning.models.norms import NormLayer, conv_norm, norm_layer
from mrcnn_lightning.user_error import UserError

Form = Literal["torchvision", "caffe", "tensorflow"]


def _shortcut(downsample: nn.Module | None, features: Tensor) -> Tensor:
    if downsample is None:
        return features
    assert isinstance(downsample, nn.Sequential) and isinstance(downsample[0], nn.Conv2d)
    return conv_norm(downsample[0], downsample[1], features)


class BasicBlock(torchvision_resnet.BasicBlock):
    """torchvision's block, whose fixed norms go into its convolutions."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        hidden = self.relu(conv_norm(self.conv1, self.bn1, features))
        hidden = conv_norm(self.conv2, self.bn2, hidden)
        output: Tensor = self.relu(hidden.add_(_shortcut(self.downsample, features)))
        return output


class Bottleneck(torchvision_resnet.Bottleneck):
    """torchvision's block, whose fixed norms go into its convolutions."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        hidden = self.relu(conv_norm(self.conv1, self.bn1, features))
        hidden = self.relu(conv_norm(self.conv2, self.bn2, hidden))
        hidden = conv_norm(self.conv3, self.bn3, hidden)
        output: Tensor = self.relu(hidden.add_(_shortcut(self.downsample, features)))
        return output


Block = type[BasicBlock] | type[Bottleneck]
BLOCKS: dict[int, tuple[Block, Sequence[int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
STAGES = (
    ("conv1", "bn1", "relu"),
    ("maxpool", "layer1"),
    ("layer2",),
    ("layer3",),
    ("layer4",),
)
FORMS = ("torchvision", "caffe", "tensorflow")


class SameMaxPool(nn.Module):
    """Max-pooling with TensorFlow's SAME padding: what does not halve goes below and right.

    Args:
        size: of the window, in cells a side.
        stride: of the window.
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size = size
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        pads = []
        for side in (features.shape[3], features.shape[2]):
            total = max((-(-side // self.stride) - 1) * self.stride + self.size - side, 0)
            pads += [total // 2, total - total // 2]
        padded = F.pad(features, pads, value=-torch.inf)
        return F.max_pool2d(padded, self.size, self.stride)


def _stage(
    block: Block,
    num_blocks: int,
    in_channels: int,
    channels: int,
    *,
    stride: int,
    dilation: int,
    groups: int,
    width_per_group: int,
    norm: NormLayer,
) -> nn.Sequential:
    out_channels = channels * block.expansion
    shape = {
        "groups": groups,
        "base_width": width_per_group,
        "dilation": dilation,
        "norm_layer": norm,
    }
    downsample = None
    if stride != 1 or in_channels != out_channels:
        projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        downsample = nn.Sequential(projection, norm(out_channels))
    first = block(in_channels, channels, stride, downsample, **shape)
    others = [block(out_channels, channels, **shape) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *others)


def _stride_on_1x1(body: nn.Module) -> None:
    """Move each bottleneck's stride from its 3x3 convolution to its first 1x1 convolution."""
    for block in body.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def resnet(
    *,
    depth: int,
    pixels: Pixels,
    width: int,
    groups: int,
    width_per_group: int,
    form: Form,
    dilate_last: bool,
    norm: str,
    norm_eps: float,
    outputs: Sequence[str],
    roi_layer: str | None,
    trainable_stages: int,
    weights: str | None,
) -> Backbone:
    """ResNet (He et al. 2016), ResNeXt (Xie et al. 2017) and Wide ResNet (Zagoruyko et al. 2016).

    Args:
        depth: 18, 34, 50, 101 or 152.
        pixels: what the weights expect of images.
        width: channels of the stem; 64 is the paper's, less is a slim one of our own.
        groups: of the 3x3 convolutions; 1 but for ResNeXt.
        width_per_group: 64, but 4 or 8 for ResNeXt and 128 for Wide ResNet.
        form: `torchvision` has the stride on the 3x3 convolutions, `caffe` on the 1x1 before them
            (Detectron2's weights of MSRA), `tensorflow` has biases and SAME padding too
            (Matterport's).
        dilate_last: whether the last stage is dilated by 2 and keeps stride 16 (DC5).
        norm: one of `NORMS`.
        norm_eps: 1e-5; Matterport 1e-3.
        outputs: layers whose outputs are handed out, of layer1 to layer4.
        roi_layer: layer4, if RoIs go through it (C4), or null.
        trainable_stages: counted from the last; 5 of 5 trains the stem too.
        weights: a name of torchvision's weights such as IMAGENET1K_V1, an address or a file of
            torchvision's or Detectron2's, or null.

    Raises:
        UserError: an argument is out of range.
    """
    if depth not in BLOCKS:
        raise UserError(f"backbone.depth={depth} is not one of {list(BLOCKS)}")
    if form not in FORMS:
        raise UserError(f"backbone.form={form} is not one of {', '.join(FORMS)}")
    for key, value in (("width", width), ("groups", groups), ("width_per_group", width_per_group)):
        if value < 1:
            raise UserError(f"backbone.{key}={value} is less than 1")
    block, num_blocks = BLOCKS[depth]
    if block is BasicBlock and (groups, width_per_group, form) != (1, 64, "torchvision"):
        raise UserError(
            f"backbone.depth={depth} has no bottlenecks: it wants backbone.groups=1 "
            "backbone.width_per_group=64 backbone.form=torchvision"
        )
    make_norm, biased = norm_layer(norm, norm_eps), form == "tensorflow"
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(pixels.channels, width, 7, stride=2, padding=3, bias=False),
        bn1=make_norm(width),
        relu=nn.ReLU(inplace=True),
        maxpool=SameMaxPool(3, 2) if biased else nn.MaxPool2d(3, stride=2, padding=1),
    )
    in_channels = width
    for stage, num in enumerate(num_blocks):
        dilated = dilate_last and stage == 3
        layers[f"layer{stage + 1}"] = _stage(
            block,
            num,
            in_channels,
            width * 2**stage,
            stride=1 if stage == 0 or dilated else 2,
            dilation=2 if dilated else 1,
            groups=groups,
            width_per_group=width_per_group,
            norm=make_norm,
        )
        in_channels = width * 2**stage * block.expansion
    body = nn.Sequential(layers)
    if form != "torchvision":
        _stride_on_1x1(body)
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if biased:
                layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    architecture = _architecture(depth, groups, width_per_group)
    return Backbone(
        body=body,
        pixels=pixels,
        outputs=outputs,
        roi_layer=roi_layer,
        trainable_stages=trainable_stages,
        pretrained=None if weights is None else Pretrained(weights, architecture),
        stages=STAGES,
    )


def _architecture(depth: int, groups: int, width_per_group: int) -> str:
    """Torchvision's name of a network."""
    if groups > 1:
        return f"resnext{depth}_{groups}x{width_per_group}d"
    return f"wide_resnet{depth}_2" if width_per_group == 128 else f"resnet{depth}"
