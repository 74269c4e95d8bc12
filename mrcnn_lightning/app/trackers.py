"""The trackers of a run, each guarded, and what a resumed run goes on with."""

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from mrcnn_lightning.app.record import Record, read_record
from mrcnn_lightning.training.csv_logger import ContinuedCSVLogger
from mrcnn_lightning.training.trackers.guarded import Guarded, Identity

# From another checkpoint a run branches off: what its trackers hold of later steps is not its own.
_LAST = "last.ckpt"
_build = partial(hydra.utils.instantiate, _convert_="all")


def make_trackers(cfg: DictConfig, record: Record, phase: int | None) -> list[Logger]:
    """The loggers of a configuration: csv as it is, others guarded.

    A run that goes on, from `ckpt_path` or with `resume`, goes on in the trackers' own runs, which
    the `run.json` of the run that the checkpoint is of names.

    Args:
        cfg: of the run or the phase.
        record: of the run, which names the trackers' runs.
        phase: of a staged training, from 1; or None.
    """
    before = _identities(_earlier_folder(cfg))
    own = record.values.setdefault("trackers", {})

    def note(name: str, identity: Identity) -> None:
        own[name] = identity
        record.note(trackers=own)

    loggers: list[Logger] = []
    for key, logger in cfg.logger.items():
        if logger is None:
            continue
        target = get_object(logger["_target_"])
        if target is ContinuedCSVLogger:
            loggers.append(_build(logger))
            continue
        name = str(key) if phase is None else f"phase_{phase}/{key}"
        loggers.append(
            Guarded(
                str(key),
                partial(_make, logger, "earlier" in inspect.signature(target).parameters),
                earlier=before.get(name),
                note=partial(note, name),
            )
        )
    return loggers


def overrides() -> dict[str, str]:
    """What the command line said, or the sweep for this job of it."""
    if not HydraConfig.initialized():
        return {}
    parts = (override.partition("=") for override in HydraConfig.get().overrides.task)
    return {key: value for key, _, value in parts}


def _make(logger: DictConfig, can_go_on: bool, earlier: Identity | None) -> Any:
    return _build(logger, earlier=earlier) if can_go_on else _build(logger)


def _earlier_folder(cfg: DictConfig) -> Path | None:
    """The folder of the run or phase that this one goes on with, which may be its own."""
    if cfg.stage != "fit":
        return None
    if cfg.ckpt_path is not None:
        path = Path(cfg.ckpt_path)
        return path.parent.parent if path.name == _LAST else None
    return Path(cfg.run_dir) if cfg.resume is not None else None


def _identities(folder: Path | None) -> dict[str, Identity]:
    """The trackers' runs of a folder, which may be a phase's."""
    if folder is None:
        return {}
    if re.fullmatch(r"phase_\d+", folder.name):
        folder = folder.parent
    trackers: dict[str, Identity] = (read_record(folder) or {}).get("trackers", {})
    return trackers
