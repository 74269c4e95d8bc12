"""Evaluations that are scored beside training come to the same, whatever happens meanwhile."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mrcnn_lightning.training.process_beside import ProcessBeside
from tests.app.test_resume import record
from tests.conftest import ROOT, command
from tests.training.tracker_contents import Contents, of_csv

Run = Callable[..., tuple[int, str]]
# Of clocks and memory; those of steps are of all or of none.
TIMES = ("train/data_wait", "train/images_per_second", "train/peak_memory")
COMMON = [
    "trainer.max_epochs=3",
    "trainer.check_val_every_n_epoch=1",
    "trainer.log_every_n_steps=2",
    "callbacks.pictures=null",
    "callbacks.best.monitor=val/box_ap",
    "callbacks.early_stopping.monitor=val/box_ap",
    "trainer.num_sanity_val_steps=0",
    "data.num_workers=0",
]
BACKGROUND = "task.background_scoring=true"


def logged(run: Path) -> Contents:
    return {key: values for key, values in of_csv(run).items() if not key[0].startswith(TIMES)}


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Where two checkpoints have not the same values."""
    if isinstance(first, dict) and first.keys() == second.keys():
        return [d for key in first for d in differences(first[key], second[key], f"{place}/{key}")]
    if isinstance(first, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [d for number, pair in pairs for d in differences(*pair, f"{place}/{number}")]
    is_tensor = isinstance(first, torch.Tensor)
    is_same = torch.equal(first, second) if is_tensor else first == second
    return [] if is_same else [place]


def require_same(first: Path, second: Path) -> None:
    """Two runs logged the same at the same steps, and have the same checkpoints."""
    assert logged(first) == logged(second)
    for name in ("best", "last"):
        one, two = (
            torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for run in (first, second)
        )
        for state in (one, two):
            # What it says of scores is from before the last evaluation's, which it owes.
            del state["callbacks"], state["owes_evaluation"]
            if name == "last":
                del state["loops"]
        assert differences(one, two) == [], name
    for key in ("ap", "best_ap", "steps", "status"):
        assert record(first)[key] == record(second)[key], key
    assert not (second / "checkpoints" / "candidate.ckpt").exists()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are computed when they are waited for: no second of a process's start each time."""
    monkeypatch.setattr(ProcessBeside, "__init__", lambda self: None)
    monkeypatch.setattr(ProcessBeside, "close", lambda self: None)
    monkeypatch.setattr(ProcessBeside, "submit", lambda self, *call: partial(*call))


def test_killed_before_the_scores_are_there(
    in_this_process: None, run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    """In the step after the second evaluation; a checkpoint has waited for the first one's."""
    status, output = run_main(*tiny(*COMMON, f"run_dir={tmp_path}/whole"))
    assert status == 0, output[-2000:]
    run = tmp_path / "run"
    fit = tiny(
        *COMMON,
        BACKGROUND,
        "callbacks.last_within_epoch.every_n_train_steps=4",
        f"run_dir={run}",
        "resume=auto",
        "+callbacks.recorder._target_=tests.training.recorder.Recorder",
        f"+callbacks.recorder.file={tmp_path}/rank",
    )
    process = multiprocessing.get_context("fork").Process(
        target=run_main, args=[*fit, "+callbacks.recorder.kill_after=13"]
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [step for name, step in logged(run) if name == "val/ap"] == [5]
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 12 and last["owes_evaluation"]
    assert (run / "checkpoints" / "candidate.ckpt").exists()
    status, output = run_main(*fit)
    assert status == 0, output[-2000:]
    require_same(tmp_path / "whole", run)


@pytest.mark.slow
def test_early_stopping_acts_when_the_scores_are_there(
    in_this_process: None, run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    fit = tiny(
        *COMMON,
        BACKGROUND,
        "trainer.num_sanity_val_steps=1",
        "callbacks.early_stopping.patience=1",
        "callbacks.last_within_epoch.every_n_train_steps=2",
    )
    status, output = run_main(*fit, f"run_dir={tmp_path}/run")
    assert status == 0 and "COCO AP after 12 steps" in output, output[-2000:]
    assert record(tmp_path / "run")["steps"] == 14
    lightnings = "callbacks.early_stopping._target_=lightning.pytorch.callbacks.EarlyStopping"
    status, output = run_main(*fit, lightnings)
    assert status == 1 and "would not wait for val/box_ap" in output, output[-2000:]


def elsewhere(own: int, what: str) -> str:
    """What does not work in another process than one's own."""
    if os.getpid() != own:
        if what == "raise":
            raise ValueError("not here")
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{what} here"


def test_what_fails_beside_is_done_here(caplog: pytest.LogCaptureFixture) -> None:
    beside = ProcessBeside()
    others = [beside.submit(os.getpid), beside.submit(torch.ones, 2)]
    failing = [beside.submit(elsewhere, os.getpid(), what) for what in ("raise", "kill", "lose")]
    assert others[0]() not in (os.getpid(), None) and torch.equal(others[1](), torch.ones(2))
    assert [each() for each in failing] == ["raise here", "kill here", "lose here"]
    (sentence,) = (each.getMessage() for each in caplog.records)
    assert "task.background_scoring" in sentence and "ValueError: not here" in sentence
    with pytest.raises(ZeroDivisionError):
        beside.submit(divmod, 1, 0)()
    beside.close()


@pytest.mark.slow
def test_it_ends_with_a_process_that_is_killed() -> None:
    script = """
import os, time
from mrcnn_lightning.training.process_beside import ProcessBeside
beside = ProcessBeside()
print(beside.submit(os.getpid)(), flush=True)
beside.submit(time.sleep, 600)
time.sleep(0.5)
os.kill(os.getpid(), 9)
"""
    process = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    pid, end = int(process.stdout), time.monotonic() + 10
    while _is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Nobody may be there to take note of its end.
    return ") Z " not in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_process_beside_each(
    tiny: Callable[..., list[str]], tmp_path: Path, devices: int
) -> None:
    fit = tiny(*COMMON, "trainer.accelerator=cpu", f"trainer.devices={devices}")
    command(*fit, f"run_dir={tmp_path}/whole", cwd=tmp_path)
    process = command(*fit, BACKGROUND, f"run_dir={tmp_path}/run", cwd=tmp_path)
    require_same(tmp_path / "whole", tmp_path / "run")
    assert "has failed" not in (tmp_path / "run" / "train.log").read_text()
    assert process.returncode == 0
