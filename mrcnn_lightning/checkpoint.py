"""Checkpoints of this project: their description, and models rebuilt from them alone.

Nothing that a checkpoint says is run.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

import hydra
import torch
from hydra.errors import InstantiationException
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from mrcnn_lightning import __version__
from mrcnn_lightning.data.bands import DType, ImageFormat
from mrcnn_lightning.data.sizing import Canvas, Resize
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.user_error import UserError
from mrcnn_lightning.weights import own
from mrcnn_lightning.weights.report import differences, require_finite

# What a checkpoint may name is defined in one of these.
_PART_MODULES = (
    "mrcnn_lightning.data.sizing",
    "mrcnn_lightning.models.backbones.classifiers",
    "mrcnn_lightning.models.backbones.pixels",
    "mrcnn_lightning.models.backbones.resnets",
    "mrcnn_lightning.models.backbones.timm_backbone",
    "mrcnn_lightning.models.box_losses",
    "mrcnn_lightning.models.detector",
    "mrcnn_lightning.models.heads.box_head",
    "mrcnn_lightning.models.heads.cascade_head",
    "mrcnn_lightning.models.heads.detections",
    "mrcnn_lightning.models.heads.mask_head",
    "mrcnn_lightning.models.heads.poolers",
    "mrcnn_lightning.models.heads.roi_sampler",
    "mrcnn_lightning.models.heads.trunks",
    "mrcnn_lightning.models.initial_weights",
    "mrcnn_lightning.models.necks",
    "mrcnn_lightning.models.rpn.anchors",
    "mrcnn_lightning.models.rpn.proposals",
    "mrcnn_lightning.models.rpn.rpn",
    "mrcnn_lightning.ops.masks",
    "mrcnn_lightning.results.pasting",
)
_PLAIN = (str, int, float, bool, NoneType)
# Nothing in a model is counted or measured in larger numbers.
_LARGEST = 10**6
# Of the canvas of an ordinary image, in pixels a side.
_LARGEST_CANVAS = 2**14
_OF_ANOTHER_VERSION = (
    "use it with stage=predict ckpt_path=FILE, or start a new training from it with weights=FILE"
)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a checkpoint says of its model: plain values alone."""

    model: dict[str, Any]  # the configuration that it is built of
    class_names: list[str]  # of the classes 1..K
    category_ids: list[int]  # of these classes in the annotation file
    resize: dict[str, Any]  # of images, to be built as well
    canvas: dict[str, Any]  # of batches
    show_score: float  # less confident detections are not drawn
    dtype: DType = "uint8"  # of image files' numbers; `model` says how many channels they have
    phase: int | None = None  # of a staged training, from 1
    version: str = __version__  # of this project, which wrote it

    def write(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return dict(vars(self))

    @classmethod
    def read(cls, content: dict[str, Any], source: str | Path) -> "Description":
        """The description in a checkpoint.

        Args:
            content: what the checkpoint holds, with `class_names`.
            source: the checkpoint, for messages.

        Raises:
            UserError: something is missing, or is no number or list of its kind.
        """
        wanted = [each.name for each in fields(cls) if each.default is MISSING]
        missing = [name for name in [*wanted, "version"] if name not in content]
        if missing:
            raise UserError(
                f"{source} is of an earlier version, which did not write {', '.join(missing)}: "
                f"{_OF_ANOTHER_VERSION}"
            )
        known = {each.name for each in fields(cls)}
        description = cls(**{name: content[name] for name in content if name in known})
        names, ids = description.class_names, description.category_ids
        if not isinstance(ids, list) or not all(
            type(each) is int and abs(each) < 2**63 for each in ids
        ):
            raise UserError(f"{source} is damaged: its category ids are no whole numbers")
        if not names or len(set(ids)) != len(names) or len(ids) != len(names):
            raise UserError(
                f"{source} is damaged: it has {len(names)} classes and {len(set(ids))} category ids"
            )
        score = description.show_score
        if type(score) not in (int, float) or not 0 <= score <= 1:
            raise UserError(f"{source} is damaged: its show_score={score} is no number from 0 to 1")
        return description


class Rebuilt(NamedTuple):
    """A model, and what it takes to use it."""

    model: Detector
    description: Description
    resize: Resize
    canvas: Canvas


def require_own_parts(config: Any) -> None:
    """Go through a checkpoint's configuration before it is instantiated.

    A checkpoint may come from anywhere. Each `_target_` must be a class or function that one of
    the modules of parts itself defines; what these modules import does not count. Texts must be
    plain: OmegaConf's interpolations can build objects too.

    Raises:
        UserError: one is not.
    """
    if isinstance(config, list):
        for entry in config:
            require_own_parts(entry)
        return
    if not isinstance(config, dict):
        # Hydra would look into other kinds of lists and dictionaries too.
        if type(config) not in _PLAIN or "${" in str(config):
            raise UserError(f"the checkpoint has {config!r}, which is no plain value")
        if isinstance(config, int | float) and not abs(config) <= _LARGEST:
            raise UserError(f"the checkpoint has {config}, which no model has: it is damaged")
        return
    for key, value in config.items():
        if str(key).startswith("_") and key not in ("_target_", "_partial_"):
            raise UserError(f"the checkpoint has the key {key}, which is no part's")
        require_own_parts(key)
        require_own_parts(value)
    if "_target_" in config:
        target = str(config["_target_"])
        module, _, name = target.rpartition(".")
        if module in _PART_MODULES and not name.startswith("_"):
            part = getattr(importlib.import_module(module), name, None)
            if getattr(part, "__module__", None) == module:
                return
        raise UserError(
            f"the checkpoint names {target}, which is no part of this project, and is not run "
            "(a run with its own configuration can use it: stage=predict ckpt_path=FILE)"
        )


@contextmanager
def _parameters_at_most(number: int) -> Iterator[None]:
    """End the building of a model that has far more parameters than its file."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > number:
            raise UserError(f"it has more than {number} tensors, its weights far fewer")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _built(description: Description, state: dict[str, Tensor]) -> Detector:
    """The model of a description that fits its weights, compared before any memory is taken.

    Raises:
        UserError: it does not fit.
        Exception: of any kind, if it cannot be built.
    """
    for device in ("meta", "cpu"):
        # A network is made whole before what detectors have no use for is left out.
        with torch.device(device), _parameters_at_most(1000 + 4 * len(state)):
            make_model = hydra.utils.instantiate(description.model, _convert_="all")
            model: Detector = make_model(class_names=description.class_names)
        problems = differences(model.state_dict(), state)
        if problems:
            raise UserError(f"its weights are others: {problems}")
    model.load_state_dict(state, strict=False)
    return model.eval()


def _require_possible_sizes(resize: Resize, canvas: Canvas) -> None:
    """Size an ordinary image.

    Raises:
        UserError: nothing can be computed at that size.
        Exception: of any kind, if these are no resize and canvas.
    """
    size = resize.size((480, 640))
    sides = [*size, *canvas.size(torch.tensor(size)).tolist()]
    if not all(1 <= side <= _LARGEST_CANVAS for side in sides):
        raise UserError(f"an image of 480 x 640 pixels would become one of {sides[2]} x {sides[3]}")


def load_checkpoint(path: str | Path) -> Rebuilt:
    """The model of a checkpoint, in evaluation mode on the CPU.

    Raises:
        UserError: the file is damaged, another program's, or names parts that are not ours.
    """
    checkpoint = own.read_checkpoint(path)
    description = Description.read(checkpoint[own.DESCRIPTION_KEY], path)
    try:
        for part in (description.model, description.resize, description.canvas):
            require_own_parts(part)
    except RecursionError as error:
        raise UserError(f"{path} is damaged: its description has no end") from error
    state = own.detector_state(checkpoint)
    require_finite(state, str(path))
    try:
        model = _built(description, state)
        ImageFormat(model.backbone.pixels.channels, description.dtype).require_known()
        resize = hydra.utils.instantiate(description.resize)
        canvas = hydra.utils.instantiate(description.canvas)
        _require_possible_sizes(resize, canvas)
    except Exception as error:  # a damaged description may lead to anything
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        reason = (str(cause or error).splitlines() or [repr(error)])[0]
        if description.version != __version__:
            raise UserError(
                f"{path} is of version {description.version}, this is {__version__}, and its model "
                f"cannot be built any more ({reason}): {_OF_ANOTHER_VERSION}"
            ) from error
        raise UserError(f"{path} does not fit the model that it describes: {reason}") from error
    return Rebuilt(model, description, resize, canvas)
