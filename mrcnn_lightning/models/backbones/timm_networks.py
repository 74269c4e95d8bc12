"""timm's networks as chains of layers; `timm_backbone` makes backbones of them.

No checkpoint may name what is here: it can fetch files.
"""

import re
from collections import OrderedDict
from typing import Any, NamedTuple

from torch import nn

from mrcnn_lightning.user_error import UserError

# An architecture, and perhaps the tag of its weights.
_NAME = re.compile(r"\w+(\.[\w-]+)?", re.ASCII)
_HRNET_STAGES = (
    ("conv1", "bn1", "act1", "conv2", "bn2", "act2"),
    ("layer1",),
    ("transition1", "stage2"),
    ("transition2", "stage3"),
    ("transition3", "stage4", "incre_modules"),
)


class Chain(NamedTuple):
    """Layers in order, as `Backbone` takes them."""

    net: Any  # timm's, which holds the same layers
    body: nn.Sequential
    outputs: list[str]
    channels_last: bool
    stages: list[list[str]] | None


def timm_chain(
    name: str, out_indices: list[int], *, channels: int, pretrained: bool = False
) -> Chain:
    """The layers of a network up to its last map; see `timm_backbone.timm`.

    Args:
        name: timm's.
        out_indices: which of its feature maps are handed out.
        channels: of an image.
        pretrained: whether timm fetches its own weights of it.

    Raises:
        UserError: timm is not installed, or has no such chain.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"backbone.name={name} is no plain name of timm's: addresses (hf-hub:...) and folders "
            "(local-dir:...) are not followed, since a checkpoint could name them; take the "
            "architecture's name, and the file of its weights as backbone.weights=FILE"
        )
    wanted = f"backbone.name={name} backbone.out_indices={out_indices}"
    wanted += " backbone.weights=pretrained" if pretrained else ""
    options: dict[str, Any] = {
        "pretrained": pretrained,
        "features_only": True,
        "out_indices": out_indices,
    }
    if channels != 3:  # timm fits its own weights to them
        options["in_chans"] = channels
    return _chain(made(name, wanted, **options), name, out_indices)


def made(name: str, wanted: str, **options: Any) -> Any:
    """A network of timm's.

    Args:
        name: timm's.
        wanted: what the user asked for, for messages.
        options: of `timm.create_model`.

    Raises:
        UserError: timm is not installed, or cannot make it.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError('backbone=timm needs timm: pip install "timm>=1.0.22"') from error
    try:
        try:  # transformers with windows take images of any size only if they are told
            return timm.create_model(name, strict_img_size=False, **options)
        except TypeError:
            return timm.create_model(name, **options)
    except Exception as error:  # timm lets through what its hub, its files and its networks raise
        raise UserError(
            f"{wanted}: timm cannot make it: "
            f"{str(error).splitlines()[0] if str(error) else error!r}"
        ) from error


def _chain(net: Any, name: str, out_indices: list[int]) -> Chain:
    """A network of timm's that gives maps, taken apart into layers where it is a chain of them."""
    from timm.models import FeatureListNet
    from timm.models.efficientnet import EfficientNetFeatures
    from timm.models.hrnet import HighResolutionNetFeatures
    from timm.models.mobilenetv3 import MobileNetV3Features

    if isinstance(net, FeatureListNet):
        layers = OrderedDict(net.items())
        return Chain(
            net, nn.Sequential(layers), list(net.return_layers), net.output_fmt == "NHWC", None
        )
    if isinstance(net, EfficientNetFeatures | MobileNetV3Features):
        stem = [(key, part) for key, part in net.named_children() if key != "blocks"]
        blocks = [(f"blocks_{key}", part) for key, part in net.blocks.named_children()]
        # The first map is the stem's, and has another name in each version of timm.
        outputs = [
            info["module"].replace(".", "_") if info["stage"] else stem[-1][0]
            for info in net.feature_info.get_dicts()
        ]
        return Chain(net, nn.Sequential(OrderedDict(stem + blocks)), outputs, False, None)
    if isinstance(net, HighResolutionNetFeatures):
        if out_indices[-4:] != [1, 2, 3, 4]:
            raise UserError(
                f"backbone.name={name} backbone.out_indices={out_indices}: its four maps are made "
                "together, set backbone.out_indices=[1,2,3,4]"
            )
        net.classifier = nn.Identity()  # would never get a gradient
        stages = [[f"branches.{part}" for part in stage] for stage in _HRNET_STAGES]
        return Chain(net, nn.Sequential(OrderedDict(branches=net)), ["branches"], False, stages)
    raise UserError(
        f"backbone.name={name}: timm does not give its maps layer by layer "
        f"({type(net).__name__}), so that its stages could not be kept fixed: take a network such "
        "as resnet50, convnext_tiny, efficientnet_b0, hrnet_w18 or swin_tiny_patch4_window7_224"
    )
