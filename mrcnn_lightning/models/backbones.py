"""Backbones: the image to feature maps, on layers of torchvision and timm.

B images, C channels of a map.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models.norms import conv_norm, norm_layer
from mrcnn_lightning.models.pixels import Pixels
from mrcnn_lightning.models.poolers import RoIStage
from mrcnn_lightning.models.weight_files import read_weights
from mrcnn_lightning.models.weights import load_backbone


class Backbone(nn.Module):
    """A chain of named layers that hands out some of its maps and keeps some stages fixed.

    Layers after the last map are left out, but for one that RoIs go through.

    Args:
        body: the layers in order.
        pixels: what their weights expect of images.
        outputs: names of the layers whose outputs are handed out, in order.
        roi_layer: the name of a layer that is applied to pooled RoIs (C4), or None.
        trainable_stages: how many stages, counted from the last, are trained. The others keep
            their weights and their batch-norm statistics.
        channels_last: whether the layers' maps are (B, H, W, C).
        stages: names of the layers of each stage; None makes one of all layers whose maps have
            one stride.

    Raises:
        ValueError: `trainable_stages` is out of range, or there is no such layer.
    """

    def __init__(
        self,
        *,
        body: nn.Sequential,
        pixels: Pixels,
        outputs: Sequence[str],
        roi_layer: str | None,
        trainable_stages: int,
        channels_last: bool = False,
        stages: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        names = [name for name, _ in body.named_children()]
        outputs = [str(name) for name in outputs]
        for name in [*outputs, *([] if roi_layer is None else [roi_layer])]:
            if name not in names:
                raise ValueError(
                    f"the backbone has no layer {name} to hand out; it has {', '.join(names)}"
                )
        kept = names[: names.index(outputs[-1]) + 1]
        self.body = nn.Sequential()
        for name in [*kept, *([] if roi_layer is None else [roi_layer])]:
            self.body.add_module(name, body.get_submodule(name))
        self.pixels = pixels
        self.channels_last = channels_last
        self._chain, self._outputs = kept, outputs
        self._together = self._pairs()
        self.out_channels: list[int] = []
        self.strides: list[int] = []
        # C4's last stage, which the body holds; None where RoIs go through none.
        self.roi_stage: RoIStage | None = None
        stages_of_stride = self._probe(roi_layer)
        stages = stages_of_stride if stages is None else stages
        if not 0 <= trainable_stages <= len(stages):
            raise ValueError(
                f"backbone.trainable_stages={trainable_stages} is not between 0 and {len(stages)}"
            )
        frozen = stages[: len(stages) - trainable_stages]
        kept = [name for name, _ in self.body.named_children()]
        self._frozen_layers = [name for stage in frozen for name in stage if name in kept]
        for name in self._frozen_layers:
            self.body.get_submodule(name).requires_grad_(False)

    def _pairs(self) -> list[list[str]]:
        """The chain's layers, each alone, but convolutions with the norms that follow them."""
        together: list[list[str]] = []
        for name in self._chain:
            layer = self.body.get_submodule(name)
            last = self.body.get_submodule(together[-1][-1]) if together else None
            is_norm = isinstance(layer, FrozenBatchNorm2d | nn.BatchNorm2d)
            if is_norm and isinstance(last, nn.Conv2d) and together[-1][-1] not in self._outputs:
                together[-1].append(name)
            else:
                together.append([name])
        return together

    @torch.no_grad()
    def _probe(self, roi_layer: str | None) -> list[list[str]]:
        """Measure the maps' channels and strides; returns the stages' layers."""
        was_training, side = self.training, 64
        self.eval()
        stages: dict[int, list[str]] = {}
        features = torch.zeros(1, 3, side, side)
        for name in self._chain:
            features = self.body.get_submodule(name)(features)
            map_ = self._handed_out(features)
            stages.setdefault(side // map_.shape[2], []).append(name)
            if name in self._outputs:
                self.out_channels.append(map_.shape[1])
                self.strides.append(side // map_.shape[2])
        if roi_layer is not None:
            layer = self.body.get_submodule(roi_layer)
            pooled = layer(features)
            stride = features.shape[2] // pooled.shape[2]
            self.roi_stage = RoIStage(layer, out_channels=pooled.shape[1], stride=stride)
        self.train(was_training)
        return list(stages.values())

    def _handed_out(self, features: Tensor) -> Tensor:
        return features.permute(0, 3, 1, 2) if self.channels_last else features

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (B, C, H / stride, W / stride) of normalised images (B, 3, H, W)."""
        maps, features = [], images
        for names in self._together:
            layer, *norms = [self.body.get_submodule(name) for name in names]
            if norms:
                assert isinstance(layer, nn.Conv2d)
                features = conv_norm(layer, norms[0], features)
            else:
                features = layer(features)
            if names[-1] in self._outputs:
                maps.append(self._handed_out(features))
        return maps

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen stages stay in evaluation mode: their running statistics do not move."""
        super().train(mode)
        for name in getattr(self, "_frozen_layers", []):
            self.body.get_submodule(name).eval()
        return self


def torchvision_features(
    *,
    name: str,
    pixels: Pixels,
    norm: str | None,
    norm_eps: float | None,
    outputs: Sequence[int],
    trainable_stages: int,
    weights: str | None,
) -> Backbone:
    """The `features` of one of torchvision's classifiers: VGG, MobileNet, EfficientNet, Swin, ...

    Args:
        name: torchvision's, such as `mobilenet_v2`.
        pixels: what the weights expect of images.
        norm: one of `NORMS`; None leaves the network its own, or has none to choose.
        norm_eps: of the norm; None where it has its own.
        outputs: numbers of the layers whose outputs are handed out.
        trainable_stages: counted from the last; a stage is all layers of one stride.
        weights: a name of torchvision's weights such as IMAGENET1K_V1, a file, or null.

    Raises:
        ValueError: there is no such network, an argument is out of range, or the weights do not
            load or do not fit.
    """
    if norm is not None and name.startswith(("convnext", "swin")):
        raise ValueError(
            f"backbone.norm={norm}: {name} has norms of its own, set backbone.norm=null"
        )
    if (norm is None) != (norm_eps is None):
        raise ValueError(
            f"backbone.norm={norm} backbone.norm_eps={norm_eps}: a norm that is chosen needs an "
            "epsilon, and a network's own has its own"
        )
    options: dict[str, Any] = {}
    if norm is not None and norm_eps is not None:
        options["norm_layer"] = norm_layer(norm, norm_eps)
    try:
        body = torchvision.models.get_model(name, weights=None, **options).features
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"backbone.name={name} backbone.norm={norm}: torchvision has no such network with "
            f"features ({error}); networks without batch norm want backbone.norm=null"
        ) from error
    if weights is not None:
        load_backbone(body, weights, architecture=name)
    return Backbone(
        body=body,
        pixels=pixels,
        outputs=[str(number) for number in outputs],
        roi_layer=None,
        trainable_stages=trainable_stages,
        channels_last=name.startswith("swin"),
    )


def timm(
    *,
    name: str,
    pixels: Pixels,
    out_indices: Sequence[int],
    trainable_stages: int,
    weights: str | None,
) -> Backbone:
    """Any of timm's networks that can give features only; `pip install "timm>=1.0"`.

    Args:
        name: timm's, such as `resnet50` or `convnext_tiny.fb_in22k`.
        pixels: what the weights expect of images.
        out_indices: which of its feature maps are handed out.
        trainable_stages: counted from the last; a stage is all layers of one stride.
        weights: `pretrained` for timm's own, a file of its whole network, or null.

    Raises:
        ValueError: timm is not installed or has no such network, it is no chain of layers, or the
            weights do not load, do not fit or expect other pixels.
    """
    net = _timm_network(name, out_indices=list(out_indices), weights=weights)
    if weights == "pretrained":
        _require_pixels(name, pixels, net)
    return Backbone(
        body=nn.Sequential(OrderedDict(net.items())),
        pixels=pixels,
        outputs=list(net.return_layers),
        roi_layer=None,
        trainable_stages=trainable_stages,
        channels_last=net.output_fmt == "NHWC",
    )


def _require_pixels(name: str, pixels: Pixels, net: Any) -> None:
    """Compare what timm says of a network's own weights."""
    wanted = {
        key: [round(255 * value, 3) for value in net.pretrained_cfg[key]] for key in ("mean", "std")
    }
    given = {"mean": pixels.mean, "std": pixels.std}
    if any(
        abs(a - b) > 0.5 for key in wanted for a, b in zip(given[key], wanted[key], strict=True)
    ):
        raise ValueError(
            f"backbone.name={name}: its weights were trained with backbone.pixels.mean="
            f"{wanted['mean']} backbone.pixels.std={wanted['std']}, set these"
        )


def _timm_network(name: str, *, out_indices: list[int], weights: str | None) -> Any:
    """A network of timm's that gives feature maps; arguments and errors as for `timm`."""
    try:
        import timm
    except ImportError as error:
        raise ValueError('backbone=timm needs timm: pip install "timm>=1.0"') from error
    options: dict[str, Any] = {"pretrained": weights is not None}
    if weights not in (None, "pretrained"):
        state = read_weights(str(weights), key="backbone.weights")
        options["pretrained_cfg_overlay"] = {"state_dict": state.get("state_dict", state)}
    options |= {"features_only": True, "out_indices": out_indices}
    try:
        try:  # transformers with windows take images of any size only if they are told
            net = timm.create_model(name, strict_img_size=False, **options)
        except TypeError:
            net = timm.create_model(name, **options)
    except Exception as error:  # timm lets through what its hub, its files and its networks raise
        raise ValueError(
            f"backbone.name={name} backbone.out_indices={out_indices} backbone.weights={weights}: "
            f"timm cannot make it: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    if not isinstance(net, nn.ModuleDict):
        raise ValueError(
            f"backbone.name={name} is no chain of layers in timm ({type(net).__name__}), its maps "
            "cannot be handed out: take a convolutional or a hierarchical network"
        )
    return net
