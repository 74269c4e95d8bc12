"""Foreign checkpoints under our names: torchvision's, Detectron2's, Caffe2's and Matterport's.

K classes, a anchors a cell.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

_Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]

_CATEGORIES = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
# torchvision's rows 1..90, some of which stand for nothing, and COCO's 80 classes.
COCO_90: list[str] = _CATEGORIES[1:]
COCO_80: list[str] = [name for name in COCO_90 if name != "N/A"]

# torchvision's detectors, in the names of today and of its first published files.
TORCHVISION: list[_Rule] = [
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


def _stage(key: re.Match[str]) -> str:
    return f"backbone.body.layer{int(key[1]) - 1}.{key[2]}"


# Detectron2's names of a ResNet's layers, wherever it stands.
_RESNET = r"(?:backbone\.bottom_up\.|backbone\.|roi_heads\.)?"
DETECTRON2_BACKBONE: list[_Rule] = [
    (rf"{_RESNET}stem\.conv1\.weight", r"backbone.body.conv1.weight"),
    (rf"{_RESNET}stem\.conv1\.norm\.(\w+)", r"backbone.body.bn1.\1"),
    (rf"{_RESNET}res(\d)\.(\d+\.conv\d\.weight)", _stage),
    (
        rf"{_RESNET}res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)",
        lambda key: f"{_stage(key)}.bn{key[3]}.{key[4]}",
    ),
    (
        rf"{_RESNET}res(\d)\.(\d+)\.shortcut\.weight",
        lambda key: f"{_stage(key)}.downsample.0.weight",
    ),
    (
        rf"{_RESNET}res(\d)\.(\d+)\.shortcut\.norm\.(\w+)",
        lambda key: f"{_stage(key)}.downsample.1.{key[3]}",
    ),
    (r"(?:stem\.)?fc\.(weight|bias)|linear\.(weight|bias)", None),  # ImageNet's classes
]


def _level(blocks: str, place: int) -> Callable[[re.Match[str]], str]:
    return lambda key: f"neck.pyramid.{blocks}.{int(key[1]) - 2}.{place}.{key[2]}"


def _conv(prefix: str, place: int) -> Callable[[re.Match[str]], str]:
    return lambda key: f"{prefix}.{int(key[1]) - 1}.{place}.{key[2]}"


DETECTRON2: list[_Rule] = [
    *DETECTRON2_BACKBONE,
    (r"backbone\.fpn_lateral(\d)\.(weight|bias)", _level("inner_blocks", 0)),
    (r"backbone\.fpn_lateral(\d)\.norm\.(\w+)", _level("inner_blocks", 1)),
    (r"backbone\.fpn_output(\d)\.(weight|bias)", _level("layer_blocks", 0)),
    (r"backbone\.fpn_output(\d)\.norm\.(\w+)", _level("layer_blocks", 1)),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(weight|bias)", r"rpn.convs.\1.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.(fc\d\.\w+)", r"box_head.branch.trunk.\1"),
    (r"roi_heads\.box_head\.conv(\d)\.(weight|bias)", _conv("box_head.branch.trunk.convs", 0)),
    (r"roi_heads\.box_head\.conv(\d)\.norm\.(\w+)", _conv("box_head.branch.trunk.convs", 1)),
    (r"roi_heads\.box_head\.(\d)\.(fc\d\.\w+)", r"box_head.branches.\1.trunk.\2"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.branch.classifier.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.branch.deltas.\1"),
    (r"roi_heads\.box_predictor\.(\d)\.cls_score\.(\w+)", r"box_head.branches.\1.classifier.\2"),
    (r"roi_heads\.box_predictor\.(\d)\.bbox_pred\.(\w+)", r"box_head.branches.\1.deltas.\2"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", _conv("mask_head.trunk.convs", 0)),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.norm\.(\w+)", _conv("mask_head.trunk.convs", 1)),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask_head\.predictor\.(\w+)", r"mask_head.classifier.\1"),
    # Constants of the configuration, which older files carry.
    (r"pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d", None),
]

_CAFFE2_NORMS = {
    **dict.fromkeys(("s", "gamma"), "weight"),
    **dict.fromkeys(("b", "beta"), "bias"),
    **dict.fromkeys(("rm", "running_mean"), "running_mean"),
    **dict.fromkeys(("riv", "running_var"), "running_var"),
}
_CAFFE2_LAYERS = {"1": "downsample.", "2a": "1", "2b": "2", "2c": "3"}


def _caffe2(key: re.Match[str]) -> str:
    stage, block, branch, what = key.groups()
    layer = _CAFFE2_LAYERS[branch]
    norm = re.fullmatch(r"[bg]n_(\w+)", what)
    if norm is None:
        name = f"{layer}0" if branch == "1" else f"conv{layer}"
        return f"backbone.body.layer{int(stage) - 1}.{block}.{name}.weight"
    name = f"{layer}1" if branch == "1" else f"bn{layer}"
    return f"backbone.body.layer{int(stage) - 1}.{block}.{name}.{_CAFFE2_NORMS[norm[1]]}"


_CAFFE2_NORM = r"[bg]n_(?:s|b|gamma|beta|rm|riv|running_mean|running_var)"
# Caffe2's names of a ResNet, as in Detectron2's ImageNet files.
CAFFE2_BACKBONE: list[_Rule] = [
    (r"conv1_w", "backbone.body.conv1.weight"),
    (r"conv1_b", None),  # in MSRA's files; Detectron2 leaves it out too
    (
        r"(?:res_)?conv1_[bg]n_(s|b|gamma|beta|rm|riv|running_mean|running_var)",
        lambda key: f"backbone.body.bn1.{_CAFFE2_NORMS[key[1]]}",
    ),
    (rf"res(\d)_(\d+)_branch(1|2a|2b|2c)_(w|{_CAFFE2_NORM})", _caffe2),
    (r"(?:fc1000|pred|linear|last_out_L1000)_[wb]|.*_momentum|lr|weight_order", None),
]

MATTERPORT: list[_Rule] = [
    (r"fpn\.C1\.0\.(\w+)", r"backbone.body.conv1.\1"),
    (r"fpn\.C1\.1\.(\w+)", r"backbone.body.bn1.\1"),
    (r"fpn\.C(\d)\.(.+)", _stage),
    (r"fpn\.P(\d)_conv1\.(\w+)", _level("inner_blocks", 0)),
    (r"fpn\.P(\d)_conv2\.1\.(\w+)", _level("layer_blocks", 0)),
    (r"rpn\.conv_shared\.(\w+)", r"rpn.convs.0.\1"),
    (r"rpn\.conv_class\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.conv_bbox\.(\w+)", r"rpn.deltas.\1"),
    (r"classifier\.((?:conv|bn)\d\.\w+)", r"box_head.branch.trunk.\1"),
    (r"classifier\.linear_class\.(\w+)", r"box_head.branch.classifier.\1"),
    (r"classifier\.linear_bbox\.(\w+)", r"box_head.branch.deltas.\1"),
    (r"mask\.conv5\.(\w+)", r"mask_head.classifier.\1"),
    (r"mask\.conv(\d)\.(\w+)", _conv("mask_head.trunk.convs", 0)),
    (r"mask\.bn(\d)\.(\w+)", _conv("mask_head.trunk.convs", 1)),
    (r"mask\.deconv\.(\w+)", r"mask_head.deconv.\1"),
]


class Translated(NamedTuple):
    """A checkpoint under our names."""

    state: dict[str, Tensor]
    left_over: list[str]  # keys that have no place in a model of ours, and need none
    unknown: list[str]  # keys that nothing is known of


def translate(state: Mapping[str, Any], rules: list[_Rule]) -> Translated:
    """Rename the keys of a state; the first rule that fits a whole key names it.

    Args:
        state: tensors or NumPy arrays by foreign names.
        rules: patterns, and their replacement; None leaves a key out.

    Raises:
        ValueError: a value is no tensor.
    """
    translated = Translated({}, [], [])
    for key, value in state.items():
        for pattern, replacement in rules:
            found = re.fullmatch(pattern, key)
            if found is None:
                continue
            if replacement is None:
                translated.left_over.append(key)
            else:
                name = replacement(found) if callable(replacement) else found.expand(replacement)
                translated.state[name] = _as_tensor(key, value)
            break
        else:
            translated.unknown.append(key)
    return translated


def _as_tensor(key: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{key} holds a {type(value).__name__}, where a tensor should be"
        ) from error


def background_first(state: dict[str, Tensor]) -> None:
    """Detectron2's rows of scores have the background last, ours first."""
    for key in state:
        if re.search(r"box_head\..*classifier\.", key):
            state[key] = state[key].roll(1, 0)


def ratios_outermost(state: dict[str, Tensor], *, num_sizes: int) -> None:
    """Detectron2's anchors of a cell go through sizes, then ratios; ours the other way."""
    for key, per_anchor in (("rpn.objectness", 1), ("rpn.deltas", 4)):
        for name in (f"{key}.weight", f"{key}.bias"):
            if name in state and len(state[name]) % (num_sizes * per_anchor) == 0:
                rows = state[name].unflatten(0, (num_sizes, -1, per_anchor))
                state[name] = rows.transpose(0, 1).flatten(0, 2)


def x_before_y(state: dict[str, Tensor]) -> None:
    """Matterport's deltas are (dy, dx, dh, dw), ours (dx, dy, dw, dh)."""
    for key in state:
        if re.search(r"(rpn|box_head\.branch)\.deltas\.", key):
            rows = state[key].unflatten(0, (-1, 4))
            state[key] = rows[:, [1, 0, 3, 2]].flatten(0, 1)


def without_statistics(state: dict[str, Tensor]) -> None:
    """Give batch norms that were folded into a scale and a shift the statistics 0 and 1."""
    for key in list(state):
        name, _, kind = key.rpartition(".")
        is_norm = kind == "weight" and state[key].dim() == 1
        if is_norm and f"{name}.running_mean" not in state:
            state[f"{name}.running_mean"] = torch.zeros_like(state[key])
            state[f"{name}.running_var"] = torch.ones_like(state[key])
