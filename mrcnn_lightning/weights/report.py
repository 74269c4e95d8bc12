"""Weights into a module: all of them, or a sentence about what does not fit."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mrcnn_lightning.user_error import UserError

log = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What became of a checkpoint's tensors."""

    source: str
    loaded: list[str] = field(default_factory=list)  # our names
    replaced: list[str] = field(default_factory=list)  # ours that start afresh
    left_over: list[str] = field(default_factory=list)  # the file's that have no place here

    def log(self) -> None:
        """Say it."""
        log.info("%s: loaded %d tensors", self.source, len(self.loaded))
        if self.replaced:
            log.info("start afresh, since the classes are others: %s", ", ".join(self.replaced))
        if self.left_over:
            log.info("left over, and not needed: %s", ", ".join(self.left_over))


def differences(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, fresh: Iterable[str] = ()
) -> str:
    """What keeps `state` from being loaded into a module whose state is `own`; "" if nothing does.

    Args:
        own: by name.
        state: by name.
        fresh: names that may be missing.
    """
    counters = {key for key in {*own, *state} if key.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - set(fresh) - counters)
    left_over = sorted(state.keys() - own.keys() - counters)
    misshapen = [
        f"{key} {_shape(state[key])} for {_shape(own[key])}"
        for key in sorted(own.keys() & state.keys())
        if _shape(own[key]) != _shape(state[key])
    ]
    return "; ".join(
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for keys, what in [
            (missing, "missing"),
            (left_over, "left over"),
            (misshapen, "of another shape"),
        ]
        if keys
    )


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights of a training that had diverged: they would find nothing, without a word.

    Args:
        state: by name.
        source: what the weights are of, for the message.

    Raises:
        UserError: names them.
    """
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        first = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise UserError(
            f"{source} has numbers that are not finite in {len(broken)} of its {len(state)} "
            f"tensors ({first}): its training had diverged, take an earlier checkpoint"
        )


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], report: LoadReport, unknown: Sequence[str] = ()
) -> None:
    """Load all of `state`; only parameters that the report has as replaced may be missing.

    Args:
        module: whose state it is.
        state: by the module's names.
        report: is completed and logged.
        unknown: names in the file that have no place and no excuse.

    Raises:
        UserError: something does not fit, or is not finite.
    """
    own = module.state_dict()
    unexplained = {key: torch.empty(0) for key in unknown}
    problems = differences(own, {**state, **unexplained}, fresh=report.replaced)
    if problems:
        raise UserError(f"{report.source} is not of this architecture: {problems}")
    require_finite(state, report.source)
    report.loaded = [key for key in state if key in own]
    module.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    report.log()
