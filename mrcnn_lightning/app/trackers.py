"""The trackers of a run, each guarded, and what a resumed run goes on with."""

import inspect
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import get_object
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from mrcnn_lightning.app.record import Record, read_record
from mrcnn_lightning.training.csv_logger import ContinuedCSVLogger
from mrcnn_lightning.training.trackers.guarded import Guarded

JOURNALS = "trackers"
_build = partial(hydra.utils.instantiate, _convert_="all")


def make_trackers(cfg: DictConfig, record: Record, phase: int | None) -> list[Logger]:
    """The loggers of a configuration: csv as it is, others guarded.

    A run that goes on, from `ckpt_path` or with `resume`, goes on in the trackers' own runs: their
    ids are in the `run.json` of the run that the checkpoint is of.

    Args:
        cfg: of the run or the phase.
        record: of the run, which keeps the ids.
        phase: of a staged training, from 1; or None.
    """
    earlier = _earlier_folder(cfg)
    journals = Path(cfg.run_dir, JOURNALS)
    if earlier is not None and earlier.absolute() != Path(cfg.run_dir).absolute():
        _copy(earlier / JOURNALS, journals)
    before = _ids(earlier)
    own = record.values.setdefault("trackers", {})

    def note_run(key: str, run_id: str) -> None:
        own[key] = run_id
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
                partial(_make, logger, "run_id" in inspect.signature(target).parameters),
                run_id=before.get(name),
                journal=journals / f"{key}.jsonl",
                note_run=partial(note_run, name),
            )
        )
    return loggers


def _make(logger: DictConfig, takes_run: bool, run_id: str | None) -> Any:
    return _build(logger, run_id=run_id) if takes_run else _build(logger)


def _earlier_folder(cfg: DictConfig) -> Path | None:
    """The folder of the run or phase that this one goes on with, which may be its own."""
    if cfg.stage != "fit":
        return None
    if cfg.ckpt_path is not None:
        return Path(cfg.ckpt_path).parent.parent
    return Path(cfg.run_dir) if cfg.resume is not None else None


def _ids(folder: Path | None) -> dict[str, str]:
    """What the trackers call the run of a folder, which may be a phase's."""
    if folder is None:
        return {}
    if folder.name.startswith("phase_") and not (folder / "run.json").is_file():
        folder = folder.parent
    trackers: dict[str, str] = (read_record(folder) or {}).get("trackers", {})
    return trackers


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
