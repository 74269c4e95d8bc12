"""Keys of foreign files under our names, by rules."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrcnn_lightning.user_error import UserError

# A pattern, and what stands for it here; None leaves the key out.
Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]


class Translated(NamedTuple):
    """A checkpoint under our names."""

    state: dict[str, Tensor]
    left_over: list[str]  # keys that have no place in a model of ours, and need none
    unknown: list[str]  # keys that nothing is known of


def translate(state: Mapping[str, Any], rules: list[Rule]) -> Translated:
    """Rename the keys of a state; the first rule that fits a whole key names it.

    Args:
        state: tensors or NumPy arrays by foreign names.
        rules: patterns, and their replacement; None leaves a key out.

    Raises:
        UserError: a value is no tensor.
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
        raise UserError(
            f"{key} holds a {type(value).__name__}, where a tensor should be"
        ) from error


def pyramid_level(blocks: str, place: int) -> Callable[[re.Match[str]], str]:
    """A layer of the pyramid, of level 2 and up."""
    return lambda key: f"neck.pyramid.{blocks}.{int(key[1]) - 2}.{place}.{key[2]}"


def numbered_conv(prefix: str, place: int) -> Callable[[re.Match[str]], str]:
    """A layer of a row of convolutions, counted from 1."""
    return lambda key: f"{prefix}.{int(key[1]) - 1}.{place}.{key[2]}"


def resnet_stage(key: re.Match[str]) -> str:
    """A layer of ResNet's stage 2 and up."""
    return f"backbone.body.layer{int(key[1]) - 1}.{key[2]}"
