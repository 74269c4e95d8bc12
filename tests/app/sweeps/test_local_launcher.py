"""Jobs of sweeps are processes: several at a time, told to end, failing, gone on with."""

import json
import os
import signal
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path

import pytest

from tests.app.sweeps.conftest import Sweep, starts, wait_for

GRID = ("-m", "optimizer.lr=0.25,0.75,0.5", "run_dir=runs/grid")


def test_a_job_that_fails_does_not_end_the_others(sweep: Sweep, tmp_path: Path) -> None:
    status, output = sweep(*GRID, "name=fails", "launcher.n_jobs=2")
    lines = output.splitlines()
    assert status == 1 and "Traceback" not in output
    assert lines[-1] == "error: 1 of 3 jobs did not finish: 1 (in runs/grid)"
    assert "job 1 failed: lr is above 0.5" in output and "job 0 finished: AP 0.250" in output
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[:3] for row in rows] == [
        ["0", "finished", "0.2500"],
        ["1", "failed", "3"],
        ["2", "finished", "0.5000"],
    ]
    for number, lr in enumerate((0.25, 0.75, 0.5)):
        folder = tmp_path / "runs" / "grid" / str(number)
        assert starts(folder) == [
            f"optimizer.lr={lr} name=fails resume=auto hydra.mode=RUN run_dir=runs/grid/{number}"
        ]
        assert "device None" in (folder / "output.txt").read_text()


def test_one_at_a_time_writes_to_the_screen(sweep: Sweep, tmp_path: Path) -> None:
    """In folders that the user names by what is varied."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 3\n")
    status, output = sweep(
        *GRID,
        *("name=dies", "experiment=mine", "hydra.sweep.subdir='lr_${optimizer.lr}'"),
        *("--config-dir", "own"),
    )
    assert status == 1 and output.count("device None") == 3
    assert "job lr_0.75 failed: killed by SIGKILL, often for lack of memory" in output
    folder = tmp_path / "runs" / "grid" / "lr_0.75"
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    (line,) = starts(folder)
    assert line.startswith(f"--config-dir {tmp_path}/own ") and "experiment=mine" in line


def test_each_job_has_gpus_of_its_own(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,9")
    assert sweep(*GRID, "launcher.gpus_per_job=2")[0] == 0
    folders = (tmp_path / "runs" / "grid").glob("?")
    devices = [(folder / "output.txt").read_text().split()[1] for folder in folders]
    assert set(devices) == {"4,5", "6,7"} and len(devices) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launcher.gpus_per_job=2"], "launcher.gpus_per_job=2, but there are 0 GPUs"),
        (["launcher.gpus_per_job=0"], "launcher.gpus_per_job=0 is no GPU"),
        (["launcher.n_jobs=0"], "launcher.n_jobs=0 runs nothing"),
    ],
)
def test_what_cannot_be_started_is_one_sentence(
    sweep: Sweep, words: list[str], message: str
) -> None:
    status, output = sweep(*GRID, *words)
    assert status == 1 and output.startswith(f"error: {message}") and output.count("\n") == 1


def test_a_sweep_that_is_told_to_end_saves_and_goes_on(
    started: Callable[..., Process], tmp_path: Path
) -> None:
    folder, gate = tmp_path / "runs" / "grid", tmp_path / "gate"
    words = (*GRID, "name=waits", f"data_root={gate}", "launcher.n_jobs=2")
    process = started(*words)
    wait_for(lambda: (folder / "0" / "waits").exists() and (folder / "1" / "waits").exists())
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    output = (tmp_path / "sweep.txt").read_text()
    assert process.exitcode == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM, and so were the jobs; to go on: " in output
    assert output.strip().endswith(" run_dir=runs/grid") and output.count("run_dir=runs/grid") == 1
    for number in (0, 1):
        record = json.loads((folder / str(number) / "run.json").read_text())
        assert record["status"] == "stopped"
    assert not (folder / "2").exists()
    gate.touch()
    process = started(*words)
    process.join()
    assert process.exitcode == 0
    assert [len(starts(folder / str(number))) for number in range(3)] == [2, 2, 1]


def test_a_job_that_outlived_its_sweep_is_waited_for(
    started: Callable[..., Process], tmp_path: Path
) -> None:
    folder, gate = tmp_path / "runs" / "grid" / "0", tmp_path / "gate"
    words = ("-m", "name=waits", f"data_root={gate}", "run_dir=runs/grid")
    process = started(*words)
    wait_for((folder / "waits").exists)
    process.kill()
    process.join()
    process = started(*words)
    wait_for(lambda: process.is_alive() and (tmp_path / "runs" / "grid" / "multirun.yaml").exists())
    process.join(0.3)
    assert process.is_alive() and len(starts(folder)) == 1
    gate.touch()
    process.join()
    assert process.exitcode == 0 and len(starts(folder)) == 2  # the second one found it finished
