"""A table of metrics that a resumed run goes on with."""

import contextlib
import csv
import logging
import os
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSVLogger, which would delete the table that it finds in its folder.

    On a disk that is full, the table stays as it is, and rows wait until there is room.

    Args:
        save_dir: the run's folder.
        name: folder within it.
        version: folder within that.
        flush_logs_every_n_steps: rows are written once so many steps have passed.
        ckpt_path: what the run goes on from; None starts a new table.
    """

    def __init__(
        self,
        *,
        save_dir: str,
        name: str,
        version: str,
        flush_logs_every_n_steps: int,
        ckpt_path: str | None,
    ) -> None:
        super().__init__(save_dir, name, version, flush_logs_every_n_steps=flush_logs_every_n_steps)
        self._file = Path(self.log_dir, ExperimentWriter.NAME_METRICS_FILE)
        self._earlier: list[dict[str, str]] = []
        self._has_warned = False
        if ckpt_path is not None and self._file.is_file():
            with self._file.open(newline="") as file:
                self._earlier = list(csv.DictReader(file))

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the table."""
        if self._experiment is None and self._earlier:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what it deletes
                writer = super().experiment
            self._write(writer, self._earlier)
        return super().experiment

    @rank_zero_only
    def save(self) -> None:
        """Write what is new; a disk that is full is one warning."""
        writer = self.experiment
        columns, is_there = list(writer.metrics_keys), self._file.is_file()
        size = self._file.stat().st_size if is_there else 0
        is_wider = any(key not in columns for row in writer.metrics for key in row)
        table = self._file.read_bytes() if is_there and is_wider else None  # is written anew
        try:
            super().save()
        except OSError as error:
            writer.metrics_keys = columns
            with contextlib.suppress(OSError):
                if table is not None:
                    self._file.write_bytes(table)
                elif self._file.is_file():
                    os.truncate(self._file, size)
            if not self._has_warned:
                log.warning("%s cannot be written, and is tried again: %s", self._file, error)
            self._has_warned = True

    @rank_zero_only
    def go_on_after(self, step: int, *, evaluates_again: bool) -> None:
        """Forget what the earlier run logged after the step that training goes on from.

        Args:
            step: how many steps were trained.
            evaluates_again: whether the evaluation after the last of them is made up for.
        """

        def is_kept(row: dict[str, str]) -> bool:
            is_evaluation = any(key.startswith("val/") and value for key, value in row.items())
            return int(row["step"]) < step - (is_evaluation and evaluates_again)

        if self._earlier:
            self._write(self.experiment, [row for row in self._earlier if is_kept(row)])
            self._earlier = []

    def _write(self, writer: ExperimentWriter, rows: list[dict[str, str]]) -> None:
        self._file.unlink(missing_ok=True)
        written: list[Any] = [{key: value for key, value in row.items() if value} for row in rows]
        writer.metrics = written
        writer.save()
