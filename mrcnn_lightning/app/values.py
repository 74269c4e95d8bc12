"""Values that a part cannot take, said with the key that a user sets, before anything is built."""

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from math import isnan
from numbers import Number
from os import PathLike
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from mrcnn_lightning.user_error import UserError

# Kinds that a command line can say, and what they are called.
_WORDS = {
    bool: "switch (true or false)",
    int: "whole number",
    float: "number",
    Number: "number",
    str: "text",
    NoneType: "null",
}
_TOO_LARGE = 2**63
# What other projects call the classes in their configurations.
_CLASSES = {"num_classes", "classes", "class_names", "nc"}


class _Part(NamedTuple):
    """A dictionary with a `_target_`."""

    key: str
    values: dict[str, Any]
    raw: dict[str, Any]  # with references to other keys as they are written


def check_values(cfg: DictConfig) -> None:
    """Compare the values of each part with the arguments of what it names.

    Only kinds are compared (a text for a number); what is out of range is refused by the part.

    Raises:
        UserError: one is of another kind, or no argument at all.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    for part in _parts("", OmegaConf.to_container(cfg, resolve=True), raw):
        try:
            target = get_object(part.values["_target_"])
            function = target.__init__ if inspect.isclass(target) else target
            arguments, kinds = inspect.signature(target).parameters, get_type_hints(function)
        except Exception:  # building it says better what is wrong, if anything is
            continue
        takes_all = any(each.kind == each.VAR_KEYWORD for each in arguments.values())
        for name, value in part.values.items():
            if name.startswith("_"):
                continue
            if name not in arguments:
                if not takes_all:
                    raise UserError(unknown_option(part.key, name, arguments))
                continue
            kind = kinds.get(name, Any)
            has_default = value is None and arguments[name].default is None
            if not has_default and not _accepts(kind, value):
                key = _set_at(f"{part.key}.{name}", part.raw[name], raw)
                size = " of 64 bits" if isinstance(value, int) and abs(value) >= _TOO_LARGE else ""
                raise UserError(f"{key}={value} is no {_words(kind)}{size}")


def unknown_option(key: str, option: str, options: Iterable[str]) -> str:
    """The sentence about an option that a part does not have.

    Args:
        key: of the part.
        option: what it was given.
        options: what it knows.
    """
    remedy = _remedy(key, option, options) or "leave it out, or choose a part that has it"
    return f"{key} has the option {option}, which the part chosen there does not know: {remedy}"


def unknown_key(parent: DictConfig, key: str) -> str:
    """The sentence about a key that a dictionary of the configuration does not have.

    Args:
        parent: the dictionary.
        key: the full key.
    """
    place, _, option = key.rpartition(".")
    target = parent.get("_target_")
    if target is not None and option in inspect.signature(get_object(target)).parameters:
        return f"{key} is not in the configuration, but can be added: +{key}=VALUE"
    names = [name for name in map(str, parent) if not name.startswith("_")]
    remedy = _remedy(place, option, names) or f"there are {', '.join(names) or 'none'}"
    return f"{key} is no key: {remedy}"


def unknown_metric(key: str, metric: str, metrics: Iterable[str]) -> str:
    """The sentence about a metric that is not logged.

    Args:
        key: what names the metric.
        metric: the name.
        metrics: what is logged.
    """
    names = sorted(metrics)
    close = difflib.get_close_matches(metric, names, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
    return (
        f"{key}={metric} is no metric that the check before training logged: {remedy} "
        "(trainer.num_sanity_val_steps=0 leaves out this check)"
    )


def _remedy(key: str, option: str, options: Iterable[str]) -> str:
    if option in _CLASSES:
        return "the classes are those of the annotation file data.train_json"
    names = [name for name in options if not name.startswith("_")]
    close = difflib.get_close_matches(option, names, n=1)
    return f"did you mean {f'{key}.{close[0]}'.lstrip('.')}?" if close else ""


def _parts(key: str, value: Any, raw: Any) -> Iterator[_Part]:
    """All parts, each where it is written and not where it is referred to."""
    if isinstance(value, dict) and isinstance(raw, dict):
        if "_target_" in value:
            yield _Part(key, value, raw)
        for name, item in value.items():
            yield from _parts(f"{key}.{name}".lstrip("."), item, raw[name])
    if isinstance(value, list) and isinstance(raw, list):
        for index, item in enumerate(value):
            yield from _parts(f"{key}.{index}", item, raw[index])


def _set_at(key: str, written: Any, raw: Any) -> str:
    """The key that a value comes from, where one refers to another."""
    while isinstance(written, str) and (reference := re.fullmatch(r"\$\{(\w[\w.]*)\}", written)):
        key, written = reference[1], raw
        for name in key.split("."):
            written = written[int(name) if isinstance(written, list) else name]
    return key


def _accepts(kind: Any, value: Any) -> bool:
    """Whether an annotation allows a value that a yaml can hold."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_accepts(each, value) for each in arguments)
    if kind is Any or (isinstance(value, dict) and "_target_" in value):
        return True
    if origin is Literal:  # which text it is, the part says
        return any(isinstance(value, type(each)) for each in arguments)
    if kind is Number:  # as torchvision writes it
        kind = float
    if kind in _WORDS:
        if kind is float and type(value) is float:
            return not isnan(value)
        kind = int if kind is float else kind
        return type(value) is kind and (kind is not int or abs(value) < _TOO_LARGE)
    if isinstance(value, list):
        elements = [each for each in arguments if each is not Ellipsis]
        if not inspect.isclass(origin) or not issubclass(origin, Sequence) or not elements:
            return True
        return all(any(_accepts(each, item) for each in elements) for item in value)
    if isinstance(value, dict):
        return True
    holder = origin or kind
    if not inspect.isclass(holder):
        return True
    return isinstance(value, str) and issubclass(holder, PathLike | Enum)


def _words(kind: Any) -> str:
    """What an annotation allows."""
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    words = [_WORDS[each] for each in members if each in _WORDS]
    if float in members and int in members:
        words.remove(_WORDS[int])
    return " or ".join(words or [getattr(each, "__name__", str(each)) for each in members])
