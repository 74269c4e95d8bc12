"""Sweeps whose jobs take no time."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mrcnn_lightning.app.run import main
from mrcnn_lightning.app.sweeps import jobs as jobs_module
from mrcnn_lightning.app.sweeps import study_report
from mrcnn_lightning.app.sweeps.jobs import jobs

FAKE = Path(__file__).parent / "fake_run.py"
Sweep = Callable[..., tuple[int, str]]


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def starts(folder: Path) -> list[str]:
    """The command lines of a job's starts."""
    return (folder / "starts.txt").read_text().splitlines()


@pytest.fixture
def sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Sweep:
    """`python fake_run.py ...` in this process: exit status, and what it printed.

    Pictures of a study take longer than all else, so they are drawn on demand.
    """
    draw = study_report._draw

    def run(*arguments: str, draws: bool = False) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(FAKE), *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(jobs_module, "_LOOK_EVERY", 0.02)
        monkeypatch.setattr("mrcnn_lightning.app.sweeps.optuna_sweeper._LOOK_EVERY", 0.02)
        monkeypatch.setattr(study_report, "_draw", draw if draws else lambda *_: None)
        jobs.signum = None
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfd.readouterr()
        return status, out + err

    return run


@pytest.fixture
def started(sweep: Sweep, tmp_path: Path) -> Callable[..., multiprocessing.Process]:
    """The same in a process of its own, which can be killed; it leaves its output in a file."""

    def run(*arguments: str, output: str = "sweep.txt") -> multiprocessing.Process:
        def target() -> None:
            status, said = sweep(*arguments)
            (tmp_path / output).write_text(said)
            os._exit(status)

        process = multiprocessing.get_context("fork").Process(target=target)
        process.start()
        return process  # type: ignore[return-value]

    return run
