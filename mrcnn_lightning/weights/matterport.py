"""Files of the PyTorch port of Matterport's Mask R-CNN."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mrcnn_lightning.weights.renaming import Rule, numbered_conv, pyramid_level, resnet_stage

DETECTOR: list[Rule] = [
    (r"fpn\.C1\.0\.(\w+)", r"backbone.body.conv1.\1"),
    (r"fpn\.C1\.1\.(\w+)", r"backbone.body.bn1.\1"),
    (r"fpn\.C(\d)\.(.+)", resnet_stage),
    (r"fpn\.P(\d)_conv1\.(\w+)", pyramid_level("inner_blocks", 0)),
    (r"fpn\.P(\d)_conv2\.1\.(\w+)", pyramid_level("layer_blocks", 0)),
    (r"rpn\.conv_shared\.(\w+)", r"rpn.convs.0.\1"),
    (r"rpn\.conv_class\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.conv_bbox\.(\w+)", r"rpn.deltas.\1"),
    (r"classifier\.((?:conv|bn)\d\.\w+)", r"box_head.branch.trunk.\1"),
    (r"classifier\.linear_class\.(\w+)", r"box_head.branch.classifier.\1"),
    (r"classifier\.linear_bbox\.(\w+)", r"box_head.branch.deltas.\1"),
    (r"mask\.conv5\.(\w+)", r"mask_head.classifier.\1"),
    (r"mask\.conv(\d)\.(\w+)", numbered_conv("mask_head.trunk.convs", 0)),
    (r"mask\.bn(\d)\.(\w+)", numbered_conv("mask_head.trunk.convs", 1)),
    (r"mask\.deconv\.(\w+)", r"mask_head.deconv.\1"),
]


def is_detector(content: Mapping[str, Any]) -> bool:
    """Whether these are a detector's weights."""
    return "fpn.C1.0.weight" in content


def x_before_y(state: dict[str, Tensor]) -> None:
    """Matterport's deltas are (dy, dx, dh, dw), ours (dx, dy, dw, dh)."""
    for key in state:
        if re.search(r"(rpn|box_head\.branch)\.deltas\.", key):
            rows = state[key].unflatten(0, (-1, 4))
            state[key] = rows[:, [1, 0, 3, 2]].flatten(0, 1)
