"""timm's networks as chains of layers, and files of their weights."""

import logging
import re
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

from torch import nn

from mrcnn_lightning.models.pixels import Pixels
from mrcnn_lightning.models.weight_files import read_weights
from mrcnn_lightning.models.weights import LoadReport, load_strictly, unwrapped

log = logging.getLogger(__name__)

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

    body: nn.Sequential
    outputs: list[str]
    channels_last: bool
    stages: list[list[str]] | None


def timm_chain(name: str, *, pixels: Pixels, out_indices: list[int], weights: str | None) -> Chain:
    """The layers of a network up to its last map, with their weights; see `backbones.timm`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"backbone.name={name} is no plain name of timm's: addresses (hf-hub:...) and folders "
            "(local-dir:...) are not followed, since a checkpoint could name them; take the "
            "architecture's name, and the file of its weights as backbone.weights=FILE"
        )
    wanted = f"backbone.name={name} backbone.out_indices={out_indices}"
    is_file = weights not in (None, "pretrained")
    net = _made(
        name,
        f"{wanted} backbone.weights={weights}",
        pretrained=weights == "pretrained",
        features_only=True,
        out_indices=out_indices,
    )
    chain = _chain(net, name, out_indices)
    if weights is not None:
        _look_at_pixels(name, pixels, net.pretrained_cfg, is_certain=not is_file or "." in name)
    if is_file:
        _load_file(net, name, str(weights))
    return chain


def _made(name: str, wanted: str, **options: Any) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ValueError('backbone=timm needs timm: pip install "timm>=1.0.22"') from error
    try:
        try:  # transformers with windows take images of any size only if they are told
            return timm.create_model(name, strict_img_size=False, **options)
        except TypeError:
            return timm.create_model(name, **options)
    except Exception as error:  # timm lets through what its hub, its files and its networks raise
        raise ValueError(
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
        return Chain(nn.Sequential(layers), list(net.return_layers), net.output_fmt == "NHWC", None)
    if isinstance(net, EfficientNetFeatures | MobileNetV3Features):
        stem = [(key, part) for key, part in net.named_children() if key != "blocks"]
        blocks = [(f"blocks_{key}", part) for key, part in net.blocks.named_children()]
        # The first map is the stem's, and has another name in each version of timm.
        outputs = [
            info["module"].replace(".", "_") if info["stage"] else stem[-1][0]
            for info in net.feature_info.get_dicts()
        ]
        return Chain(nn.Sequential(OrderedDict(stem + blocks)), outputs, False, None)
    if isinstance(net, HighResolutionNetFeatures):
        if out_indices[-4:] != [1, 2, 3, 4]:
            raise ValueError(
                f"backbone.name={name} backbone.out_indices={out_indices}: its four maps are made "
                "together, set backbone.out_indices=[1,2,3,4]"
            )
        net.classifier = nn.Identity()  # would never get a gradient
        stages = [[f"branches.{part}" for part in stage] for stage in _HRNET_STAGES]
        return Chain(nn.Sequential(OrderedDict(branches=net)), ["branches"], False, stages)
    raise ValueError(
        f"backbone.name={name}: timm does not give its maps layer by layer "
        f"({type(net).__name__}), so that its stages could not be kept fixed: take a network such "
        "as resnet50, convnext_tiny, efficientnet_b0, hrnet_w18 or swin_tiny_patch4_window7_224"
    )


def _look_at_pixels(name: str, pixels: Pixels, known: dict[str, Any], *, is_certain: bool) -> None:
    """Compare what timm says of a network's weights; a file may be of others if no tag is named."""
    different = pixels.difference(mean=known["mean"], std=known["std"])
    if different and is_certain:
        raise ValueError(
            f"backbone.name={name}: its weights were trained with {different}, set these"
        )
    if different:
        log.warning(
            "backbone.name=%s: timm's own weights of it were trained with %s: if the file has "
            "these, set these",
            name,
            different,
        )


def _load_file(net: nn.Module, name: str, weights: str) -> None:
    """Load a file of the whole network, or of what is used of it; nothing else may be in it."""
    import timm

    report = LoadReport(f"backbone.weights={weights}")
    content = unwrapped(read_weights(weights, key="backbone.weights"))
    whole = _made(name, f"backbone.name={name}")
    module = sys.modules[timm.models.model_entrypoint(name.partition(".")[0]).__module__]
    translate = getattr(module, "checkpoint_filter_fn", None)  # of the authors' names
    if translate is not None:
        try:
            content = translate(content, whole)
        except Exception as error:  # it is made for the authors' files alone
            raise ValueError(
                f"{report.source} is not of this architecture ({name}): {error!r}"
            ) from error
    # A network that gives maps has the parts of its sequences on its first level.
    flat = {
        f"{sequence}.{part}.": f"{sequence}_{part}."
        for sequence, parts in whole.named_children()
        for part, _ in parts.named_children()
        if f"{sequence}_{part}" in net._modules
    }
    own, names = net.state_dict(), whole.state_dict()
    state: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in content.items():
        start = re.match(r"\w+\.\w+\.", key)
        ours = key
        if start is not None and start[0] in flat:
            ours = flat[start[0]] + key.removeprefix(start[0])
        if ours in own:
            state[ours] = value
        else:
            (report.left_over if key in names else unknown).append(key)
    load_strictly(net, state, report, unknown)
