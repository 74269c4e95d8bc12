"""A model rebuilt from its checkpoint alone, without running what the checkpoint says."""

import importlib
from pathlib import Path
from types import NoneType
from typing import Any

import hydra

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.models.weight_files import SPEC_KEY, read_checkpoint
from mrcnn_lightning.models.weights import differences, require_finite

# What a checkpoint may name is defined in one of these.
_PART_MODULES = (
    "mrcnn_lightning.data.sizing",
    "mrcnn_lightning.models.anchors",
    "mrcnn_lightning.models.backbones",
    "mrcnn_lightning.models.box_head",
    "mrcnn_lightning.models.box_losses",
    "mrcnn_lightning.models.cascade_head",
    "mrcnn_lightning.models.detections",
    "mrcnn_lightning.models.detector",
    "mrcnn_lightning.models.initial_weights",
    "mrcnn_lightning.models.mask_head",
    "mrcnn_lightning.models.necks",
    "mrcnn_lightning.models.pixels",
    "mrcnn_lightning.models.poolers",
    "mrcnn_lightning.models.proposals",
    "mrcnn_lightning.models.resnets",
    "mrcnn_lightning.models.roi_sampler",
    "mrcnn_lightning.models.rpn",
    "mrcnn_lightning.models.trunks",
    "mrcnn_lightning.ops.masks",
)
_PLAIN = (str, int, float, bool, NoneType)


def require_own_parts(config: Any) -> None:
    """Go through a checkpoint's configuration before it is instantiated.

    A checkpoint may come from anywhere. Each `_target_` must be a class or function that one of
    the modules of parts itself defines; what these modules import does not count. Texts must be
    plain: OmegaConf's interpolations can build objects too.

    Raises:
        ValueError: one is not.
    """
    if isinstance(config, list):
        for entry in config:
            require_own_parts(entry)
        return
    if not isinstance(config, dict):
        # Hydra would look into other kinds of lists and dictionaries too.
        if type(config) in _PLAIN and "${" not in str(config):
            return
        raise ValueError(f"the checkpoint has {config!r}, which is no plain value")
    for key, value in config.items():
        if str(key).startswith("_") and key not in ("_target_", "_partial_"):
            raise ValueError(f"the checkpoint has the key {key}, which is no part's")
        require_own_parts(key)
        require_own_parts(value)
    if "_target_" in config:
        target = str(config["_target_"])
        module, _, name = target.rpartition(".")
        if module in _PART_MODULES and not name.startswith("_"):
            part = getattr(importlib.import_module(module), name, None)
            if getattr(part, "__module__", None) == module:
                return
        raise ValueError(
            f"the checkpoint names {target}, which is no part of this project, and is not run"
        )


def _without_weights(config: Any) -> Any:
    """A model's configuration whose parts start from nothing."""
    if isinstance(config, list):
        return [_without_weights(entry) for entry in config]
    if not isinstance(config, dict):
        return config
    return {
        key: None if key == "weights" else _without_weights(value) for key, value in config.items()
    }


def load_checkpoint(path: str | Path) -> tuple[Detector, dict[str, Any]]:
    """The model of a checkpoint, ready to predict, and the specification that came with it.

    Returns:
        The detector in evaluation mode on the CPU, and a dictionary with `class_names`,
        `category_ids`, `show_score`, `model` (its configuration), and `resize` and `canvas`
        (built).

    Raises:
        ValueError: the file is damaged, another program's, or names parts that are not ours.
    """
    checkpoint = read_checkpoint(path)
    spec = checkpoint[SPEC_KEY]
    missing = [key for key in ("model", "resize", "canvas", "show_score") if key not in spec]
    if missing:
        raise ValueError(
            f"{path} is of an earlier version, which did not write {', '.join(missing)}: use it "
            "with stage=predict ckpt_path=FILE, or start a new training from it with weights=FILE"
        )
    sizing = {key: spec[key] for key in ("resize", "canvas")}
    for part in (spec["model"], *sizing.values()):
        require_own_parts(part)
    make_model = hydra.utils.instantiate(_without_weights(spec["model"]), _convert_="all")
    model: Detector = make_model(class_names=spec["class_names"])
    prefix = "model."
    state = {
        key.removeprefix(prefix): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    problems = differences(model.state_dict(), state)
    if problems:
        raise ValueError(f"{path} does not fit the model that it describes: {problems}")
    require_finite(state, str(path))
    model.load_state_dict(state, strict=False)
    built = {key: hydra.utils.instantiate(part) for key, part in sizing.items()}
    return model.eval(), spec | built
