"""A model rebuilt from its checkpoint alone, without running what the checkpoint says."""

import importlib
from pathlib import Path
from typing import Any

import hydra

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.models.weights import SPEC_KEY, read_checkpoint

_PART_FILES = (
    "backbones",
    "box_head",
    "detector",
    "mask_head",
    "necks",
    "poolers",
    "roi_sampler",
    "rpn",
)


def require_own_parts(config: Any) -> None:
    """Go through a model's configuration before it is instantiated.

    A checkpoint may come from anywhere. Each `_target_` must be a class or function that one of
    the files of `mrcnn_lightning.models` itself defines; what these files import does not count.
    Texts must be plain: OmegaConf's interpolations can build objects too.

    Raises:
        ValueError: one is not.
    """
    if isinstance(config, str) and "${" in config:
        raise ValueError(f"the checkpoint's model has {config!r}, which is no plain value")
    if isinstance(config, list):
        for entry in config:
            require_own_parts(entry)
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if str(key).startswith("_") and key not in ("_target_", "_partial_"):
            raise ValueError(f"the checkpoint's model has the key {key}, which is no part's")
        require_own_parts(key)
        require_own_parts(value)
    if "_target_" in config:
        target = str(config["_target_"])
        module, _, name = target.rpartition(".")
        if module.removeprefix("mrcnn_lightning.models.") in _PART_FILES and not name.startswith(
            "_"
        ):
            part = getattr(importlib.import_module(module), name, None)
            if getattr(part, "__module__", None) == module:
                return
        raise ValueError(
            f"the checkpoint's model names {target}, which is no part of mrcnn_lightning.models, "
            "and is not run"
        )


def load_checkpoint(path: str | Path) -> tuple[Detector, dict[str, Any]]:
    """The model of a checkpoint, ready to predict, and the specification that came with it.

    Returns:
        The detector in evaluation mode on the CPU, and a dictionary with `class_names`,
        `category_ids`, `min_size`, `max_size` and `model`.

    Raises:
        ValueError: the file is damaged, another program's, or names parts that are not ours.
    """
    checkpoint = read_checkpoint(path)
    spec = checkpoint[SPEC_KEY]
    require_own_parts(spec["model"])
    config = spec["model"] | {"backbone": spec["model"]["backbone"] | {"weights": None}}
    make_model = hydra.utils.instantiate(config, _convert_="all")
    model: Detector = make_model(class_names=spec["class_names"])
    prefix = "model."
    model.load_state_dict(
        {
            key.removeprefix(prefix): value
            for key, value in checkpoint["state_dict"].items()
            if key.startswith(prefix)
        }
    )
    return model.eval(), spec
