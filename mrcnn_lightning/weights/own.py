"""Checkpoints of this project, as a family of weights."""

from pathlib import Path
from typing import Any

from torch import Tensor

from mrcnn_lightning.user_error import UserError
from mrcnn_lightning.weights.files import read_file

# Where a checkpoint keeps what it takes to rebuild its model.
DESCRIPTION_KEY = "mrcnn_lightning"


def is_checkpoint(content: dict[str, Any]) -> bool:
    """Whether a file is a checkpoint of this project."""
    return DESCRIPTION_KEY in content


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint of this project holds.

    Raises:
        UserError: see `read_file`, or the file is another program's.
    """
    checkpoint = read_file(path)
    if not is_checkpoint(checkpoint):
        raise UserError(
            f"{path} is no checkpoint of this project: to start from foreign weights, say "
            "weights=FILE"
        )
    require_whole(checkpoint, path)
    return checkpoint


def require_whole(checkpoint: dict[str, Any], source: str | Path) -> None:
    """Look whether a checkpoint of this project has all that such ones have.

    Raises:
        UserError: something is missing or of another kind.
    """
    description, state = checkpoint[DESCRIPTION_KEY], checkpoint.get("state_dict")
    names = description.get("class_names") if isinstance(description, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source} is no whole checkpoint of this project: it names no classes")
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise UserError(f"{source} is no whole checkpoint of this project: it has no weights")


def is_bgr(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint's model was trained on BGR, as far as it says."""
    part: Any = checkpoint[DESCRIPTION_KEY]
    for name in ("model", "backbone", "pixels", "channel_order"):
        part = part.get(name) if isinstance(part, dict) else None
    return bool(part == "BGR")


def detector_state(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The detector's weights of a checkpoint, under the names in the detector."""
    prefix = "model."
    return {
        key.removeprefix(prefix): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
