"""What a run says of itself, in its folder: for tables of runs, for sweeps and for going on."""

import json
import logging
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from mrcnn_lightning.app.errors import sentence
from mrcnn_lightning.app.ranks import own_rank
from mrcnn_lightning.app.stopping import Stop, Stopped
from mrcnn_lightning.user_error import UserError

log = logging.getLogger(__name__)

FILE = "run.json"
CONFIG = "config.yaml"


class Record:
    """A run's `run.json`; only rank 0 writes it.

    Its keys, each there once it is known: `status` (running, finished, pruned, stopped or failed),
    `stage`, `error` (one sentence), `command`, `host`, `started` (when it was first started, ISO
    8601), `seconds` (of all its starts), `steps`, `ap` (of the last evaluation), `best_ap`,
    `best_checkpoint`, `environment` (commit, versions, data) and `trackers` (what each calls the
    run, to go on with it).

    Args:
        folder: of the run.
        goes_on: whether the run goes on with one in that folder.
    """

    def __init__(self, folder: str | Path, *, goes_on: bool) -> None:
        self.file = Path(folder, FILE)
        self.values: dict[str, Any] = (read_record(folder) or {}) if goes_on else {}
        self._seconds_before = self.values.get("seconds", 0.0)
        self._start = time.monotonic()

    def note(self, **values: Any) -> None:
        """Add values; a disk that is full is no reason to end a run."""
        seconds = self._seconds_before + time.monotonic() - self._start
        self.values |= values | {"seconds": round(seconds, 1)}
        if own_rank() > 0:
            return
        part = self.file.with_name(f".{FILE}.part")
        try:
            part.write_text(json.dumps(self.values, indent=1), "utf-8")
            part.replace(self.file)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.file, error)


@contextmanager
def recorded(cfg: DictConfig, stop: Stop) -> Iterator[Record]:
    """Note a run's start and how it ends, and keep its configuration.

    Raises:
        UserError: the folder has a training, and this is none.
    """
    before = read_record(cfg.run_dir) or {}
    if cfg.stage != "fit" and before.get("stage", cfg.stage) != cfg.stage:
        raise UserError(
            f"run_dir={cfg.run_dir} has a run of stage={before['stage']}, whose record "
            f"stage={cfg.stage} would replace: give another folder"
        )
    folder = Path(cfg.run_dir).absolute()
    goes_on = cfg.resume is not None or folder in Path(cfg.ckpt_path or "").absolute().parents
    record = Record(cfg.run_dir, goes_on=goes_on)
    record.note(
        status="running",
        stage=cfg.stage,
        error=None,
        command=shlex.join(sys.argv),
        host=socket.gethostname(),
        started=record.values.get("started")
        or datetime.now().astimezone().isoformat("T", "seconds"),
    )
    if own_rank() == 0:
        save_config(cfg, cfg.run_dir)
    try:
        yield record
    except BaseException as error:
        if isinstance(error, Stopped) or stop.is_saved:
            record.note(status="stopped")
        else:
            record.note(status="failed", error=sentence(error))
        raise
    if record.values["status"] == "running":
        record.note(status="finished")


def save_config(cfg: DictConfig, folder: str) -> None:
    """Write a configuration, which others may read meanwhile."""
    part = Path(folder, f".{CONFIG}.part")
    OmegaConf.save(cfg, part, resolve=True)
    part.replace(Path(folder, CONFIG))


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """What the run of a folder says of itself; None if it says nothing."""
    try:
        values: dict[str, Any] = json.loads(Path(folder, FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return values


class RecordsProgress(Callback):
    """Notes how far a run is whenever it was evaluated.

    Args:
        record: of the run.
    """

    def __init__(self, record: Record) -> None:
        self.record = record

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Note, unless this was only the check before training."""
        if not trainer.sanity_checking:
            pl_module.when_scored(lambda: self._note(trainer, pl_module.results["ap"]))

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Note."""
        self._note(trainer, pl_module.results["ap"])

    def _note(self, trainer: Trainer, ap: float) -> None:
        best = max(ap, self.record.values.get("best_ap") or 0.0)
        self.record.note(ap=ap, best_ap=best, steps=trainer.global_step)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: Any) -> None:
        """Note the step that a resumed run would start from."""
        self.record.note(steps=trainer.global_step)
