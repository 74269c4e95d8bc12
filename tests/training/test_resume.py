"""A run that was killed and resumed ends as if nothing had happened."""

import json
import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("end", "workers"),
    [("trainer.max_epochs=3", 2), ("trainer.max_steps=15", 0)],
)
def test_killed_in_an_epoch_and_resumed(
    tiny: Callable[..., list[str]],
    tmp_path: Path,
    run_main: Callable[..., tuple[int, str]],
    end: str,
    workers: int,
) -> None:
    def arguments(name: str, *more: str, kill_after: int = 0) -> list[str]:
        return tiny(
            end,
            f"data.num_workers={workers}",
            "trainer.check_val_every_n_epoch=1",
            "callbacks.last_within_epoch.every_n_train_steps=3",
            f"run_dir={tmp_path}/{name}",
            "+callbacks.recorder._target_=tests.training.recorder.Recorder",
            f"+callbacks.recorder.file={tmp_path}/{name}.rank",
            f"+callbacks.recorder.kill_after={kill_after}",
            "+callbacks.recorder.drop=true",
            *more,
        )

    assert run_main(*arguments("whole"))[0] == 0
    killed = multiprocessing.get_context("fork").Process(
        target=run_main, args=arguments("killed", kill_after=10)
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 9  # an epoch has 6 steps
    assert run_main(*arguments("resumed", f"ckpt_path={last}"))[0] == 0

    whole, resumed = rows(tmp_path / "whole.rank0"), rows(tmp_path / "resumed.rank0")
    assert len(whole) in (15, 18)
    assert rows(tmp_path / "killed.rank0") == whole[:10]
    assert resumed == whole[9:]
    assert len({json.dumps(row) for row in whole}) == len(whole)
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "resumed")
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == len(whole)
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key]), key
