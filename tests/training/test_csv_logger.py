"""The table of metrics on a disk that is full for a while."""

import csv
import logging
from pathlib import Path
from typing import Any

import pytest

from mrcnn_lightning.training.csv_logger import ContinuedCSVLogger


@pytest.mark.parametrize("name", ["loss", "another"])
def test_rows_wait_for_room(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a new column makes the whole table be written anew."""
    logger = ContinuedCSVLogger(
        save_dir=str(tmp_path), name="csv", version="", flush_logs_every_n_steps=1, ckpt_path=None
    )
    logger.log_metrics({"loss": 0.5}, 0)
    before = (tmp_path / "csv" / "metrics.csv").read_text()
    write = csv.DictWriter.writerows

    def full(writer: Any, rows: Any) -> None:
        write(writer, list(rows)[:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(csv.DictWriter, "writerows", full)
        for step in (1, 2):
            logger.log_metrics({name: 0.25}, step)
            logger.save()
            assert (tmp_path / "csv" / "metrics.csv").read_text() == before
    logger.log_metrics({name: 0.125}, 3)
    logger.save()
    with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), row.get(name)) for row in rows[1:]] == [
        (1, "0.25"),
        (2, "0.25"),
        (3, "0.125"),
    ]
    assert rows[0]["loss"] == "0.5"
    warned = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warned) == 1 and "No space left on device" in warned[0].getMessage()
