"""Tables for the screen and the log, pictures for the run's folder and its trackers."""

import json
import logging
from pathlib import Path
from typing import Any

import lightning
import rich
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from rich.console import Console
from rich.table import Table

from mrcnn_lightning.training.trackers.guarded import Guarded

log = logging.getLogger(__name__)


def show(table: Table) -> None:
    """Print a table on the screen, above a progress bar if there is one, and in the run's log."""
    rich.get_console().print(table)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            Console(file=handler.stream, width=100).print(table)


def trackers(trainer: lightning.Trainer) -> list[Guarded]:
    """The loggers that may show more than numbers."""
    return [logger for logger in trainer.loggers if isinstance(logger, Guarded)]


def logged_step(trainer: lightning.Trainer) -> int:
    """The step that Lightning gives to the metrics of an evaluation that ends now."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


@rank_zero_only
def show_picture(
    trainer: lightning.Trainer,
    name: str,
    picture: Image.Image,
    *,
    step: int,
    folder: Path,
    numbers: dict[str, Any] | None = None,
) -> None:
    """Write a picture into a folder, over that of the evaluation before, and give it to trackers.

    A disk that is full is no reason to end a run.

    Args:
        trainer: of the run.
        name: as of a metric: `val/picture_00`.
        picture: to show.
        step: for trackers.
        folder: where it is written.
        numbers: what it shows, written beside it as json.
    """
    file = folder / f"{name.replace('/', '_')}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        if numbers is not None:
            file.with_suffix(".json").write_text(json.dumps(numbers), "utf-8")
    except OSError as error:
        log.warning("%s cannot be written: %s", file, error.strerror or error)
    for tracker in trackers(trainer):
        tracker.log_picture(name, picture, step)
