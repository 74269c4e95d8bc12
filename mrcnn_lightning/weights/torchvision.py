"""torchvision's files: detectors, and classifiers for backbones."""

import re
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models.backbones.backbone import Backbone
from mrcnn_lightning.models.backbones.pixels import Pixels
from mrcnn_lightning.user_error import UserError
from mrcnn_lightning.weights.files import published_entry
from mrcnn_lightning.weights.renaming import Rule

_CATEGORIES = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
# torchvision's rows 1..90, some of which stand for nothing, and COCO's 80 classes.
COCO_90: list[str] = _CATEGORIES[1:]
COCO_80: list[str] = [name for name in COCO_90 if name != "N/A"]

# Classifiers' layers that a backbone has no use for.
CLASSIFIER_KEYS = re.compile(r"(fc|classifier|head|norm|avgpool)\.")
# Detectors that were trained with a batch-norm epsilon of 0.
_ZERO_EPS = ("MaskRCNN_ResNet50_FPN_Weights", "FasterRCNN_ResNet50_FPN_Weights")
# Mean and deviation that all of torchvision's detectors have.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# torchvision's detectors, in the names of today and of its first published files.
DETECTOR: list[Rule] = [
    (r"(backbone\.body\..+)", r"\1"),
    (r"backbone\.fpn\.(\w+_blocks\.\d\.\d\.\w+)", r"neck.pyramid.\1"),
    (r"backbone\.fpn\.(\w+_blocks\.\d)\.(weight|bias)", r"neck.pyramid.\1.0.\2"),
    (r"rpn\.head\.conv\.(\d)\.0\.(\w+)", r"rpn.convs.\1.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"box_head.branch.trunk.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"box_head.branch.trunk.fc2.\1"),
    (r"roi_heads\.box_head\.(\d\.\d\.\w+)", r"box_head.branch.trunk.convs.\1"),
    (r"roi_heads\.box_head\.\d\.(weight|bias)", r"box_head.branch.trunk.fc1.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.branch.classifier.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.branch.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d\.\d\.\w+)", r"mask_head.trunk.convs.\1"),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)",
        lambda key: f"mask_head.trunk.convs.{int(key[1]) - 1}.0.{key[2]}",
    ),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.classifier.\1"),
]


def is_detector(content: Mapping[str, Any]) -> bool:
    """Whether these are a detector's weights."""
    return "rpn.head.cls_logits.weight" in content


def require_classifiers_pixels(weights: str, architecture: str, pixels: Pixels) -> None:
    """Look whether a backbone gets what its weights expect, where their name says that.

    Raises:
        UserError: it gets something else.
    """
    entry = published_entry(weights, architecture)
    if entry is None:
        return
    preset = entry.transforms()
    different = pixels.difference(mean=preset.mean, std=preset.std)
    if different:
        raise UserError(
            f"backbone.weights={weights} are torchvision's {entry!r}, which were trained with "
            f"{different}: set these"
        )


def require_detectors_pixels(weights: str, pixels: Pixels) -> None:
    """Look whether the backbone gets what a published detector's did.

    Raises:
        UserError: it gets something else.
    """
    different = pixels.difference(mean=_IMAGENET[0], std=_IMAGENET[1])
    if re.fullmatch(r"\w+_Weights\.\w+", weights) and different:
        raise UserError(f"weights={weights} was trained with {different}: set these")


def without_epsilon(weights: str, state: dict[str, Tensor], backbone: Backbone) -> None:
    """Let the backbone's frozen norms compute what they did without an epsilon.

    torchvision's first detectors were trained so. A frozen norm scales by
    `weight / sqrt(variance + epsilon)`: another epsilon is another weight.

    Args:
        weights: what the user calls them.
        state: under our names; is changed.
        backbone: whose norms are meant.

    Raises:
        UserError: the norms are trained, where no weight does the same.
    """
    name, _, _ = weights.partition(".")
    file = weights.partition("#")[0].rpartition("/")[2]
    known = [torchvision.models.get_weight(f"{name}.COCO_V1") for name in _ZERO_EPS]
    if name not in _ZERO_EPS and file not in (entry.url.rpartition("/")[2] for entry in known):
        return
    for name, norm in backbone.named_modules(prefix="backbone"):
        eps = getattr(norm, "eps", 0.0)
        if isinstance(norm, _BatchNorm) and eps > 0:
            raise UserError(
                f"weights={weights} was trained with a batch-norm epsilon of 0, and these norms "
                "are trained on: set backbone.norm_eps=0, or backbone.norm=frozen_bn"
            )
        if isinstance(norm, FrozenBatchNorm2d) and f"{name}.running_var" in state:
            variance = state[f"{name}.running_var"].double()
            factor = ((variance + eps) / variance).sqrt().where(variance > 0, 1.0)
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = (weight * factor).to(weight.dtype)
