"""`resume=auto`: the same command starts, goes on, or gives back what a run came to."""

import json
import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.app.test_stopping import SHORT, _listening, same_end, tells  # noqa: F401

Run = Callable[..., tuple[int, str]]


def record(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "run.json").read_text())
    return values


def test_the_same_command_until_it_is_finished(
    run_main: Run,
    tiny: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a SLURM job that is told twice that its time is up."""
    common = [*SHORT, "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1"]
    status, output = run_main(*tiny(*common, f"run_dir={tmp_path}/whole"))
    assert status == 0, output[-2000:]

    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/requeued\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=":")
    run = tmp_path / "runs" / "shapes" / "slurm_77"
    told = tells((signal.SIGUSR1, 2, "training"), (signal.SIGTERM, 6, "evaluation"))
    command = tiny(*common, "resume=auto")
    with monkeypatch.context() as slurm:
        slurm.setenv("SLURM_JOB_ID", "77")
        for name, number in (("SIGUSR1", 138), ("SIGTERM", 143)):
            status, output = run_main(*command, *told)
            assert status == number, output[-2000:]
            assert output.strip().splitlines()[-1] == (
                f"stopped by {name}; job 77 is requeued, and goes on by itself"
            )
            assert record(run)["status"] == "stopped"
        assert (tmp_path / "requeued").read_text() == "requeue 77\n" * 2
        status, output = run_main(*command)
    assert status == 0, output[-2000:]
    same_end(tmp_path / "whole", run)
    first = record(run)
    assert first["status"] == "finished" and first["steps"] == 12 and first["seconds"] > 0
    assert first["best_checkpoint"] == str(run / "checkpoints" / "best.ckpt")

    # Finished: nothing is trained or evaluated again, until the configuration is another.
    status, output = run_main(*command, f"run_dir={run}")
    assert status == 0 and f"is finished: AP {first['ap']}" in output, output[-2000:]
    assert record(run) == first
    status, output = run_main(*command, f"run_dir={run}", "trainer.max_epochs=3")
    assert status == 0, output[-2000:]
    assert record(run)["steps"] == 18 and record(run)["started"] == first["started"]
    status, output = run_main(*command, f"run_dir={run}", "optimizer.lr=1e-9")
    assert status == 1 and f"run_dir={run} has a run with another optimizer" in output
    status, output = run_main(*tiny("stage=validate", "weights=x"), f"run_dir={run}")
    assert status == 1 and f"run_dir={run} has a run of stage=fit" in output


def test_the_last_evaluation_is_made_up_for(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The check before training, of one batch, is no evaluation, although it comes after a fit."""
    run = tmp_path / "run"
    last = ["trainer.max_epochs=2", "trainer.check_val_every_n_epoch=3", "data.eval_batch_size=5"]
    command = tiny(*last, "resume=auto", "callbacks.pictures=null", f"run_dir={run}")
    process = multiprocessing.get_context("fork").Process(
        target=run_main, args=[*command, *tells((signal.SIGKILL, 12, "evaluation"))]
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and record(run)["status"] == "running"
    status, output = run_main(*command)
    assert status == 0 and "COCO AP after 12 steps" in output, output[-2000:]
    assert record(run)["status"] == "finished" and record(run)["ap"] >= 0


def test_a_new_start_in_a_used_folder_has_a_record_of_its_own(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"best_ap": 0.9, "seconds": 1e6, "stage": "fit"}))
    command = tiny(*SHORT, "trainer.max_steps=1", "trainer.limit_val_batches=1", f"run_dir={run}")
    status, output = run_main(*command)
    assert status == 0, output[-2000:]
    assert record(run)["best_ap"] < 0.9 and record(run)["seconds"] < 1e6
    status, output = run_main(*command)
    assert status == 1 and f"run_dir={run} has a training, which this one would replace" in output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resume=yes"], "resume=yes is neither null nor auto"),
        (["resume=auto", "stage=test", "weights=x"], "stage=test is none"),
    ],
)
def test_what_is_refused(run_main: Run, tmp_path: Path, overrides: list[str], message: str) -> None:
    status, output = run_main(*overrides, f"run_dir={tmp_path}/run")
    assert status == 1 and message in output


def test_a_failure_is_recorded(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    status, _ = run_main(*tiny("data.batch_size=25", f"run_dir={tmp_path}/run"))
    assert status == 1
    failed = record(tmp_path / "run")
    assert failed["status"] == "failed" and "data.batch_size=25" in failed["error"]
    assert "train.py experiment=shapes" in failed["command"]
