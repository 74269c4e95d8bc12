"""A run that is stopped, or killed while it evaluates, goes on as if nothing had happened."""

import csv
import multiprocessing
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mrcnn_lightning.structures import Batch
from tests.conftest import command

Run = Callable[..., tuple[int, str]]
SHORT = [
    "trainer.log_every_n_steps=2",
    "trainer.num_sanity_val_steps=0",
    "trainer.limit_val_batches=2",
    "data.eval_batch_size=4",
    "callbacks.pictures=null",
    "data.num_workers=0",
]


@pytest.fixture(autouse=True)
def _listening() -> Iterator[None]:
    """Runs ignore Ctrl-C where it was ignored when they started, as in a script's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Tells(Callback):
    """Sends signals to its own process, each at a step, in training or in the evaluation after it.

    Args:
        signals: lists of a signal, how many steps were trained, and `training` or `evaluation`.
        rank: which of several processes does so.
    """

    def __init__(self, *, signals: list[Any], rank: int = 0) -> None:
        self.rank = rank
        self.signals = {(steps, where): signum for signum, steps, where in signals}

    def _tell(self, trainer: lightning.Trainer, where: str) -> None:
        if not trainer.sanity_checking and trainer.global_rank == self.rank:
            signum = self.signals.get((trainer.global_step, where))
            if signum is not None:
                os.kill(os.getpid(), signum)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Tell."""
        self._tell(trainer, "training")

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Tell in the second batch."""
        if batch_idx == 1:
            self._tell(trainer, "evaluation")


def tells(*signals: tuple[int, int, str], rank: int = 0) -> list[str]:
    listed = ",".join(f"[{int(signum)},{steps},{where}]" for signum, steps, where in signals)
    return [
        "+callbacks.tells._target_=tests.app.test_stopping.Tells",
        f"+callbacks.tells.signals=[{listed}]",
        f"+callbacks.tells.rank={rank}",
    ]


TIMED = {
    "train/data_wait",
    "train/images_per_second",
    "train/peak_memory_host",
}


def table(run: Path) -> list[dict[str, str]]:
    """What a run logged, but for times and memory."""
    with (run / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if row[key] and key not in TIMED} for row in rows]


def same_end(first: Path, second: Path) -> None:
    """Two runs logged the same, have the same last weights, and the same best ones."""
    assert table(first) == table(second)
    for name in ("last", "best"):
        states = [
            torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for run in (first, second)
        ]
        assert states[0]["global_step"] == states[1]["global_step"]
        assert states[0]["epoch"] == states[1]["epoch"]
        for key, value in states[0]["state_dict"].items():
            assert torch.equal(value, states[1]["state_dict"][key]), key


def go_on(output: str) -> list[str]:
    """The overrides of the command that a stopped run ends with."""
    line = output.strip().splitlines()[-1]
    assert ", everything is saved; to go on: " in line, output[-2000:]
    words = shlex.split(line.partition("to go on: ")[2])
    return words[words.index("experiment=shapes") :]


def test_stopped_in_a_step_and_in_an_evaluation(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    common = [*SHORT, "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1"]
    status, output = run_main(*tiny(*common, f"run_dir={tmp_path}/whole"))
    assert status == 0, output[-2000:]

    told = tells((signal.SIGTERM, 2, "training"), (signal.SIGINT, 6, "evaluation"))
    run = tmp_path / "it's a=run, stopped"
    quoted = str(run).replace("'", r"\'")
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    status, output = run_main(*tiny(*common, *told, f"run_dir='{quoted}'"))
    assert status == 143 and "stopped by SIGTERM, every" in output, output[-2000:]
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    status, output = run_main(*go_on(output))
    assert status == 130 and "stopped by Ctrl-C, every" in output, output[-2000:]
    assert handlers == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    assert not (run / "checkpoints" / "best.ckpt").exists()
    status, output = run_main(*(each for each in go_on(output) if "callbacks.tells" not in each))
    assert status == 0, output[-2000:]
    assert output.index("COCO AP after 6 steps") < output.index("COCO AP after 12 steps")
    same_end(tmp_path / "whole", run)


def test_an_evaluation_that_was_killed_is_made_up_for(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    """As in the COCO recipes: last.ckpt is written just before each, within epochs of 6 steps."""
    schedule = ["max_epochs=-1", "max_steps=8", "check_val_every_n_epoch=null"]
    common = [*SHORT, *(f"trainer.{each}" for each in schedule), "trainer.val_check_interval=4"]
    common.append("callbacks.last_within_epoch.every_n_train_steps=4")
    status, output = run_main(*tiny(*common, f"run_dir={tmp_path}/whole"))
    assert status == 0, output[-2000:]

    run = tmp_path / "killed"
    fit = tiny(*common, f"run_dir={run}")
    resumed = f"ckpt_path={run}/checkpoints/last.ckpt"
    for step, more in ((4, []), (8, [resumed])):
        process = multiprocessing.get_context("fork").Process(
            target=run_main, args=[*fit, *more, *tells((signal.SIGKILL, step, "evaluation"))]
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (run / "checkpoints" / "best.ckpt").exists() == (step == 8)
    status, output = run_main(*fit, resumed)
    assert status == 0, output[-2000:]
    same_end(tmp_path / "whole", run)


def test_a_sweep_of_phases_ends_with_the_job_that_is_stopped(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    phases = "phases=[{trainer.max_steps:3},{trainer.max_steps:1}]"
    common = [*SHORT, "trainer.limit_val_batches=0", phases, "optimizer.lr=0.005,0.01"]
    status, output = run_main(
        "-m", "hydra/launcher=basic", *tiny(*common, *tells((signal.SIGINT, 1, "training")))
    )
    assert status == 130, output[-2000:]
    (sweep,) = (tmp_path / "runs" / "shapes").iterdir()
    assert [job.name for job in sweep.iterdir() if job.is_dir()] == ["0"]
    overrides = go_on(output)
    assert "optimizer.lr=0.005" in overrides and phases in overrides
    assert overrides[-1] == f"ckpt_path={sweep}/0/phase_1/checkpoints/last.ckpt"
    resumed = [each for each in overrides if "callbacks.tells" not in each]
    status, output = run_main(*resumed, f"run_dir={tmp_path}/resumed")
    assert status == 0, output[-2000:]
    for phase, steps in ((1, 3), (2, 1)):
        last = tmp_path / "resumed" / f"phase_{phase}" / "checkpoints" / "last.ckpt"
        assert torch.load(last, weights_only=True)["global_step"] == steps


def test_all_ranks_stop_together(tiny: Callable[..., list[str]], tmp_path: Path) -> None:
    """One is told in its last batch of an evaluation, of which the other has one more."""
    two = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.limit_train_batches=1"]
    more = ["trainer.check_val_every_n_epoch=1", "data.eval_batch_size=2", "data.num_workers=0"]
    told = tells((signal.SIGTERM, 1, "evaluation"), rank=1)
    process = command(
        *tiny(*two, *more, *told, f"run_dir={tmp_path}/run"), cwd=tmp_path, wait=False
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 143, output[-2000:]
    assert output.count("stopped by") == 1 and "Traceback" not in output
    assert go_on(output)[-1] == f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 1 and last["owes_evaluation"]
