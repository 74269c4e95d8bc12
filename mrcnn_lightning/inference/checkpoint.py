"""A model rebuilt from its checkpoint alone, without running what the checkpoint says."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

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
# Nothing in a model is counted or measured in larger numbers.
_LARGEST = 10**6
# Of the canvas of an ordinary image, in pixels a side.
_LARGEST_CANVAS = 2**14
_OF_ANOTHER_VERSION = (
    "use it with stage=predict ckpt_path=FILE, or start a new training from it with weights=FILE"
)


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
        if type(config) not in _PLAIN or "${" in str(config):
            raise ValueError(f"the checkpoint has {config!r}, which is no plain value")
        if isinstance(config, int | float) and not abs(config) <= _LARGEST:
            raise ValueError(f"the checkpoint has {config}, which no model has: it is damaged")
        return
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


@contextmanager
def _parameters_at_most(number: int) -> Iterator[None]:
    """End the building of a model that has far more parameters than its file."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > number:
            raise ValueError(f"it has more than {number} tensors, its weights far fewer")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _rebuilt(spec: dict[str, Any], state: dict[str, Tensor]) -> Detector:
    """The model of a description that fits its weights, compared before any memory is taken.

    Raises:
        ValueError: it does not fit.
        Exception: of any kind, if it cannot be built.
    """
    for device in ("meta", "cpu"):
        # A network is made whole before what detectors have no use for is left out.
        with torch.device(device), _parameters_at_most(1000 + 4 * len(state)):
            config = _without_weights(spec["model"])
            make_model = hydra.utils.instantiate(config, _convert_="all")
            model: Detector = make_model(class_names=spec["class_names"])
        problems = differences(model.state_dict(), state)
        if problems:
            raise ValueError(f"its weights are others: {problems}")
    model.load_state_dict(state, strict=False)
    return model.eval()


def _require_whole_spec(spec: dict[str, Any], path: str | Path) -> None:
    """Look at what a specification says beside its parts.

    Raises:
        ValueError: something is missing, or no number or list of its kind.
    """
    wanted = ("model", "resize", "canvas", "show_score", "category_ids")
    missing = [key for key in wanted if key not in spec]
    if missing:
        raise ValueError(
            f"{path} is of an earlier version, which did not write {', '.join(missing)}: "
            f"{_OF_ANOTHER_VERSION}"
        )
    names, ids, score = spec["class_names"], spec["category_ids"], spec["show_score"]
    if not isinstance(ids, list) or not all(
        type(each) is int and abs(each) < 2**63 for each in ids
    ):
        raise ValueError(f"{path} is damaged: its category ids are no whole numbers")
    if not names or len(set(ids)) != len(names) or len(ids) != len(names):
        raise ValueError(
            f"{path} is damaged: it has {len(names)} classes and {len(set(ids))} category ids"
        )
    if type(score) not in (int, float) or not 0 <= score <= 1:
        raise ValueError(f"{path} is damaged: its show_score={score} is no number from 0 to 1")


def _require_possible_sizes(resize: Any, canvas: Any) -> None:
    """Size an ordinary image.

    Raises:
        ValueError: nothing can be computed at that size.
        Exception: of any kind, if these are no resize and canvas.
    """
    size = resize.size((480, 640))
    sides = [*size, *canvas.size(torch.tensor(size)).tolist()]
    if not all(1 <= side <= _LARGEST_CANVAS for side in sides):
        raise ValueError(
            f"an image of 480 x 640 pixels would become one of {sides[2]} x {sides[3]}"
        )


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
    _require_whole_spec(spec, path)
    sizing = {key: spec[key] for key in ("resize", "canvas")}
    try:
        for part in (spec["model"], *sizing.values()):
            require_own_parts(part)
    except RecursionError as error:
        raise ValueError(f"{path} is damaged: its description has no end") from error
    prefix = "model."
    state = {
        key.removeprefix(prefix): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    require_finite(state, str(path))
    try:
        model = _rebuilt(spec, state)
        built = {key: hydra.utils.instantiate(part) for key, part in sizing.items()}
        _require_possible_sizes(**built)
    except Exception as error:  # a damaged description may lead to anything
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        reason = (str(cause or error).splitlines() or [repr(error)])[0]
        if isinstance(cause, TypeError) and "argument" in reason:
            raise ValueError(
                f"{path} is of another version, whose parts had other options ({reason}): "
                f"{_OF_ANOTHER_VERSION}"
            ) from error
        raise ValueError(f"{path} does not fit the model that it describes: {reason}") from error
    return model, spec | built
