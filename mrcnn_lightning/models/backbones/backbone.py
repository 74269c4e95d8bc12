"""Backbones: the image to feature maps.

B images, C channels of a map.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models.backbones.pixels import Pixels
from mrcnn_lightning.models.backbones.recomputing import recomputed
from mrcnn_lightning.models.norms import conv_norm
from mrcnn_lightning.models.roi_stage import RoIStage
from mrcnn_lightning.user_error import UserError


class Pretrained(NamedTuple):
    """The weights that a backbone is to start from; `weights.load` reads them."""

    weights: str  # a name of torchvision's, a file, an address, or timm's `pretrained`
    architecture: str  # torchvision's or timm's name of the network
    out_indices: list[int] | None = None  # the maps of a network of timm's


class Backbone(nn.Module):
    """A chain of named layers that hands out some of its maps and keeps some stages fixed.

    Layers after the last map are left out, but for one that RoIs go through.

    Args:
        body: the layers in order; one may give a list of maps, which are all handed out.
        pixels: what their weights expect of images.
        outputs: names of the layers whose outputs are handed out, in order.
        roi_layer: the name of a layer that is applied to pooled RoIs (C4), or None.
        trainable_stages: how many stages, counted from the last, are trained. The others keep
            their weights and their batch-norm statistics.
        pretrained: the weights that it is to start from, which are not read here; or None.
        channels_last: whether the layers' maps are (B, H, W, C).
        stages: names of each stage's parts in `body`; None makes one of all layers whose maps
            have one stride.

    Attributes:
        recomputes: whether training keeps only what its trained stages are given, and computes
            what is within them once more in the backward pass (Chen et al. 2016).

    Raises:
        UserError: `trainable_stages` is out of range, there is no such layer, or a map has no
            whole stride.
    """

    def __init__(
        self,
        *,
        body: nn.Sequential,
        pixels: Pixels,
        outputs: Sequence[str],
        roi_layer: str | None,
        trainable_stages: int,
        pretrained: Pretrained | None,
        channels_last: bool = False,
        stages: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        names = [name for name, _ in body.named_children()]
        outputs = [str(name) for name in outputs]
        for name in [*outputs, *([] if roi_layer is None else [roi_layer])]:
            if name not in names:
                raise UserError(
                    f"the backbone has no layer {name} to hand out; it has {', '.join(names)}"
                )
        kept = names[: names.index(outputs[-1]) + 1]
        self.body = nn.Sequential()
        for name in [*kept, *([] if roi_layer is None else [roi_layer])]:
            self.body.add_module(name, body.get_submodule(name))
        self.left_out = [name for name in names if name not in dict(self.body.named_children())]
        self.pixels = pixels
        self.pretrained = pretrained
        self.channels_last = channels_last
        self.recomputes = False
        self._chain, self._outputs = kept, outputs
        self.out_channels: list[int] = []
        self.strides: list[int] = []
        # C4's last stage, which the body holds; None where RoIs go through none.
        self.roi_stage: RoIStage | None = None
        stages_of_stride = self._probe(roi_layer)
        self._segments = self._parts(stages_of_stride)
        stages = stages_of_stride if stages is None else stages
        if not 0 <= trainable_stages <= len(stages):
            raise UserError(
                f"backbone.trainable_stages={trainable_stages} is not between 0 and {len(stages)}"
            )
        frozen = stages[: len(stages) - trainable_stages]
        kept = [name for name, _ in self.body.named_modules()]
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

    def _parts(self, stages: list[list[str]]) -> list[list[list[str]]]:
        """The pairs of each stage, which ends where a map is handed out too."""
        last_names = {stage[-1] for stage in stages} | set(self._outputs)
        segments: list[list[list[str]]] = [[]]
        for names in self._pairs():
            segments[-1].append(names)
            if names[-1] in last_names:
                segments.append([])
        return [segment for segment in segments if segment]

    @torch.no_grad()
    def _probe(self, roi_layer: str | None) -> list[list[str]]:
        """Measure the maps' channels and strides; returns the stages' layers."""
        was_training, side = self.training, 64
        self.eval()
        stages: dict[int, list[str]] = {}
        features = torch.zeros(1, self.pixels.channels, side, side + 32)
        for name in self._chain:
            features = self.body.get_submodule(name)(features)
            maps = self._handed_out(features)
            stages.setdefault(side // maps[-1].shape[2], []).append(name)
            if name in self._outputs:
                self.out_channels += [map_.shape[1] for map_ in maps]
                self.strides += [_whole_stride(name, side, map_.shape[2]) for map_ in maps]
        if roi_layer is not None:
            layer = self.body.get_submodule(roi_layer)
            pooled = layer(features)
            stride = features.shape[2] // pooled.shape[2]
            self.roi_stage = RoIStage(layer, features.shape[1], pooled.shape[1], stride)
        self.train(was_training)
        return list(stages.values())

    def _handed_out(self, features: Tensor | list[Tensor]) -> list[Tensor]:
        maps = features if isinstance(features, list) else [features]
        return [map_.permute(0, 3, 1, 2) for map_ in maps] if self.channels_last else maps

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (B, C, H / stride, W / stride) of normalised images (B, channels, H, W)."""
        maps: list[Tensor] = []
        features: Tensor | list[Tensor] = images
        for segment in self._segments:
            if self.recomputes:
                layers = [self.body.get_submodule(name) for names in segment for name in names]
                features = recomputed(partial(self._through, segment), layers, features)
            else:
                features = self._through(segment, features)
            if segment[-1][-1] in self._outputs:
                maps += self._handed_out(features)
        return maps

    def _through(
        self, segment: list[list[str]], features: Tensor | list[Tensor]
    ) -> Tensor | list[Tensor]:
        for names in segment:
            layer, *norms = [self.body.get_submodule(name) for name in names]
            if norms:
                assert isinstance(layer, nn.Conv2d) and isinstance(features, Tensor)
                features = conv_norm(layer, norms[0], features)
            else:
                features = layer(features)
        return features

    def train(self, mode: bool = True) -> "Backbone":
        """Frozen stages stay in evaluation mode: their running statistics do not move."""
        super().train(mode)
        for name in getattr(self, "_frozen_layers", []):
            self.body.get_submodule(name).eval()
        return self


def _whole_stride(name: str, side: int, cells: int) -> int:
    if side % cells:
        raise UserError(
            f"the backbone's layer {name} makes {cells} cells of {side} pixels, which is no whole "
            "stride: take a network that halves its maps"
        )
    return side // cells
