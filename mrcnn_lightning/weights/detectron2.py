"""Detectron2's files, and Caffe2's of its backbones.

K classes, a anchors a cell.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mrcnn_lightning.models.backbones.pixels import Pixels
from mrcnn_lightning.user_error import UserError
from mrcnn_lightning.weights.renaming import Rule, numbered_conv, pyramid_level, resnet_stage

log = logging.getLogger(__name__)

# Detectron2's names of a ResNet's layers, wherever it stands.
_RESNET = r"(?:backbone\.bottom_up\.|backbone\.|roi_heads\.)?"
BACKBONE: list[Rule] = [
    (rf"{_RESNET}stem\.conv1\.weight", r"backbone.body.conv1.weight"),
    (rf"{_RESNET}stem\.conv1\.norm\.(\w+)", r"backbone.body.bn1.\1"),
    (rf"{_RESNET}res(\d)\.(\d+\.conv\d\.weight)", resnet_stage),
    (
        rf"{_RESNET}res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)",
        lambda key: f"{resnet_stage(key)}.bn{key[3]}.{key[4]}",
    ),
    (
        rf"{_RESNET}res(\d)\.(\d+)\.shortcut\.weight",
        lambda key: f"{resnet_stage(key)}.downsample.0.weight",
    ),
    (
        rf"{_RESNET}res(\d)\.(\d+)\.shortcut\.norm\.(\w+)",
        lambda key: f"{resnet_stage(key)}.downsample.1.{key[3]}",
    ),
    (r"(?:stem\.)?fc\.(weight|bias)|linear\.(weight|bias)", None),  # ImageNet's classes
]

# Where the heads' convolutions are.
_BOX_CONVS, _MASK_CONVS = "box_head.branch.trunk.convs", "mask_head.trunk.convs"
DETECTOR: list[Rule] = [
    *BACKBONE,
    (r"backbone\.fpn_lateral(\d)\.(weight|bias)", pyramid_level("inner_blocks", 0)),
    (r"backbone\.fpn_lateral(\d)\.norm\.(\w+)", pyramid_level("inner_blocks", 1)),
    (r"backbone\.fpn_output(\d)\.(weight|bias)", pyramid_level("layer_blocks", 0)),
    (r"backbone\.fpn_output(\d)\.norm\.(\w+)", pyramid_level("layer_blocks", 1)),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rpn.convs.0.\1"),
    (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.(weight|bias)", r"rpn.convs.\1.\2"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.(fc\d\.\w+)", r"box_head.branch.trunk.\1"),
    (r"roi_heads\.box_head\.conv(\d)\.(weight|bias)", numbered_conv(_BOX_CONVS, 0)),
    (r"roi_heads\.box_head\.conv(\d)\.norm\.(\w+)", numbered_conv(_BOX_CONVS, 1)),
    (r"roi_heads\.box_head\.(\d)\.(fc\d\.\w+)", r"box_head.branches.\1.trunk.\2"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.branch.classifier.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.branch.deltas.\1"),
    (r"roi_heads\.box_predictor\.(\d)\.cls_score\.(\w+)", r"box_head.branches.\1.classifier.\2"),
    (r"roi_heads\.box_predictor\.(\d)\.bbox_pred\.(\w+)", r"box_head.branches.\1.deltas.\2"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", numbered_conv(_MASK_CONVS, 0)),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.norm\.(\w+)", numbered_conv(_MASK_CONVS, 1)),
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
CAFFE2_BACKBONE: list[Rule] = [
    (r"conv1_w", "backbone.body.conv1.weight"),
    (r"conv1_b", None),  # in MSRA's files; Detectron2 leaves it out too
    (
        r"(?:res_)?conv1_[bg]n_(s|b|gamma|beta|rm|riv|running_mean|running_var)",
        lambda key: f"backbone.body.bn1.{_CAFFE2_NORMS[key[1]]}",
    ),
    (rf"res(\d)_(\d+)_branch(1|2a|2b|2c)_(w|{_CAFFE2_NORM})", _caffe2),
    (r"(?:fc1000|pred|linear|last_out_L1000)_[wb]|.*_momentum|lr|weight_order", None),
]


def is_detector(content: Mapping[str, Any]) -> bool:
    """Whether these are a detector's weights."""
    return any(key.startswith("proposal_generator.rpn_head.") for key in content)


def backbone_rules(content: Mapping[str, Any]) -> list[Rule] | None:
    """The rules for a backbone's weights, if they are of this family."""
    if "conv1_w" in content:
        return CAFFE2_BACKBONE
    return BACKBONE if any(".conv1.norm." in key for key in content) else None


def require_pixels(weights: str, pixels: Pixels) -> None:
    """Look whether the backbone gets BGR, as all models of Detectron2's zoo do.

    Raises:
        UserError: it gets RGB, and the weights are the zoo's.
    """
    if pixels.channel_order == "BGR" or pixels.channels != 3:
        return
    if "://" in weights:
        raise UserError(
            f"weights={weights} was trained on BGR images, and the backbone gets RGB: choose its "
            "own, such as backbone=resnet50_caffe, or experiment=mask_rcnn_r50_fpn_3x"
        )
    log.warning(
        "weights=%s is Detectron2's, whose models take BGR images unless they are told otherwise, "
        "and the backbone gets RGB: backbone=resnet50_caffe is its own form",
        weights,
    )


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


def without_statistics(state: dict[str, Tensor]) -> None:
    """Give batch norms that were folded into a scale and a shift the statistics 0 and 1."""
    for key in list(state):
        name, _, kind = key.rpartition(".")
        is_norm = kind == "weight" and state[key].dim() == 1
        if is_norm and f"{name}.running_mean" not in state:
            state[f"{name}.running_mean"] = torch.zeros_like(state[key])
            state[f"{name}.running_var"] = torch.ones_like(state[key])
