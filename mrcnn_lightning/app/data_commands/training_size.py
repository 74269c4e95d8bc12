"""What a data set is compared with: the sizes and anchors that the configuration trains with."""

from collections.abc import Sequence
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf

from mrcnn_lightning.app.command_line import CONF
from mrcnn_lightning.data.checking.boxes import AnchorLevel
from mrcnn_lightning.data.checking.whole_set import TrainingSize
from mrcnn_lightning.data.sizing import Resize
from mrcnn_lightning.ops.anchors import cell_anchors


def training_size(overrides: Sequence[str] = ()) -> TrainingSize:
    """The resizing and the anchors of a configuration, the default one if nothing is said.

    Args:
        overrides: as for training.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [*overrides, "backbone.weights=null", "run_dir=unused"])
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    resize: Resize = hydra.utils.instantiate(resolved["data"]["resize"], _convert_="all")
    with torch.device("meta"):  # the strides are all that is wanted of the model
        make = hydra.utils.instantiate(resolved["model"], _convert_="all")
        rpn = make(class_names=["object"]).rpn
    levels = []
    for stride, sizes in zip(rpn.strides, rpn.anchors.sizes, strict=True):
        cells = cell_anchors(sizes, rpn.anchors.aspect_ratios)
        cells = cells.round() if rpn.anchors.rounded else cells
        levels.append(AnchorLevel(cells.numpy(), (stride, stride), rpn.anchors.offset))
    return TrainingSize(f"{resize.min_size}/{resize.max_size}", resize.size, levels)
