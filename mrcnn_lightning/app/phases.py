"""Staged training: each phase is a fit of its own, from the last weights of the one before.

Layers unfrozen under a running DDP wrap would keep unreduced gradients, hence the new fit.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from mrcnn_lightning.app.values import check_values
from mrcnn_lightning.user_error import UserError, built
from mrcnn_lightning.weights.own import DESCRIPTION_KEY, read_checkpoint
from mrcnn_lightning.weights.report import differences

log = logging.getLogger(__name__)

# What belongs to the whole run, and what its processes were started for.
_OF_THE_RUN = {
    "stage",
    "phases",
    "weights",
    "ckpt_path",
    "run_dir",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
}


def run_phases(
    cfg: DictConfig, run_one: Callable[[DictConfig, int | None], tuple[float | None, str | None]]
) -> float | None:
    """Run one phase after the other; all at once where there are none.

    Args:
        cfg: of the whole run.
        run_one: runs a configuration, given the phase's number from 1 or None, and returns AP and
            the phase's last checkpoint.

    Returns:
        AP of the last phase.

    Raises:
        UserError: `phases` or `ckpt_path` are not what they should be, before anything runs.
    """
    if cfg.stage == "fit" and cfg.phases is not None:
        _require_list(cfg.phases)
    resumed = _resumed_phase(cfg) or 1
    if cfg.stage != "fit" or not cfg.phases:
        return run_one(cfg, None)[0]
    phases = [_merge(cfg, index) for index in range(len(cfg.phases))]
    _try_parts(phases)
    ap, last = None, None
    for number, phase in enumerate(phases, 1):
        if number < resumed:
            continue
        if last is not None:
            phase.weights, phase.ckpt_path = last, None
        _announce(cfg, number)
        Path(phase.run_dir).mkdir(parents=True, exist_ok=True)
        ap, last = run_one(phase, number)
    return ap


def save_last(trainer: Trainer, run_dir: str) -> str:
    """Write what the next phase starts from, for which all ranks wait.

    The callbacks may have been left out, or have had nothing to write in a resumed run.

    Returns:
        The path, rank 0's on all ranks.
    """
    path = trainer.strategy.broadcast(str(Path(run_dir, "checkpoints", "last.ckpt")))
    trainer.save_checkpoint(path, weights_only=False)
    return path


def _resumed_phase(cfg: DictConfig) -> int | None:
    """The phase that the checkpoint is of, if there is one."""
    if cfg.ckpt_path is None:
        return None
    number: int | None = read_checkpoint(cfg.ckpt_path)[DESCRIPTION_KEY].get("phase")
    num = len(cfg.phases or [])
    if cfg.stage == "fit" and (num < number if number is not None else num > 0):
        trained = "a run without phases" if number is None else f"phase {number}"
        raise UserError(
            f"ckpt_path={cfg.ckpt_path} is of {trained}, but phases lists {num}: to resume it, "
            "give the phases of its run (config.yaml in its folder); to start a new training from "
            "it, say weights=FILE instead"
        )
    return number


def _require_list(phases: Any) -> None:
    if not isinstance(phases, ListConfig) or not all(
        isinstance(changes, DictConfig) for changes in phases
    ):
        raise UserError(
            f"phases={phases} is no list of dictionaries of changes to the configuration, such as "
            "phases=[{trainer.max_epochs:8},{trainer.max_epochs:4}]"
        )


@rank_zero_only
def _announce(cfg: DictConfig, number: int) -> None:
    changes = " ".join(f"{key}={value}" for key, value in _changes(cfg, number - 1))
    log.info("phase %d of %d: %s", number, len(cfg.phases), changes or "no changes")


def _changes(cfg: DictConfig, index: int) -> list[tuple[str, Any]]:
    """What a phase changes: full keys and their values."""
    return list(_leaves(OmegaConf.to_container(cfg.phases[index], resolve=False)))


def _leaves(tree: Any, parents: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{parents}{key}.")
        else:
            yield f"{parents}{key}", value


def _merge(cfg: DictConfig, index: int) -> DictConfig:
    """The configuration of a phase."""
    changes = OmegaConf.create(
        {
            "name": f"{cfg.name}_phase_{index + 1}",
            "seed": cfg.seed + index,
            "run_dir": str(Path(cfg.run_dir, f"phase_{index + 1}")),
        }
    )
    for key, value in _changes(cfg, index):
        if key in _OF_THE_RUN:
            raise UserError(f"phases[{index}] changes {key}, which is one for the whole run")
        OmegaConf.update(changes, key, value)
        switches_off = value is None and "." in key
        if OmegaConf.is_dict(OmegaConf.select(cfg, key)) and not switches_off:
            raise UserError(
                f"phases[{index}] sets {key}={value}, but {key} is a dictionary: a phase changes "
                "single values of it"
            )
    try:
        merged = OmegaConf.merge(cfg, changes)
    except ConfigKeyError as error:
        raise UserError(
            f"phases[{index}] changes {error.full_key}, which the configuration does not have"
        ) from error
    assert isinstance(merged, DictConfig)
    check_values(merged)
    return merged


def _try_parts(phases: list[DictConfig]) -> None:
    """Build what is quick to build, so that a mistake in the last phase shows before the first.

    Raises:
        UserError: a part cannot be built, or a phase's model has other weights than the first's.
    """
    states = []
    for phase in phases:
        build = partial(hydra.utils.instantiate, _convert_="all")
        model = build(phase.model)(class_names=["object"])
        optimizer = built(build(phase.optimizer), "optimizer", model.parameters())
        built(build(phase.scheduler), "scheduler", optimizer, total_steps=1)
        build(phase.data, with_masks=model.mask_head is not None)
        states.append({key: value.to("meta") for key, value in model.state_dict().items()})
        if problems := differences(states[-1], states[0]):
            raise UserError(
                f"phases[{len(states) - 1}] cannot go on with the weights of the phases before it, "
                f"its model is another: {problems}"
            )
