"""A run that is killed twenty times, at random moments, ends as if nothing had happened."""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import command
from tests.training.tracker_contents import Contents, of_csv, of_mlflow, of_tensorboard, of_wandb

KILLS = 20
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1]
# What depends on the clock.
TIMES = ("train/data_wait", "train/images_per_second", "train/peak_memory")


def of_steps(contents: Contents) -> Contents:
    return {key: values for key, values in contents.items() if not key[0].startswith(TIMES)}


@pytest.mark.slow
def test_twenty_times(tmp_path: Path) -> None:
    """`experiment=shapes` with all trackers; the same command starts it each time."""
    drawn = random.Random(seed := int(os.environ.get("MRCNN_KILLS_SEED", time.time())))
    common = [
        "experiment=shapes",
        f"data_root={tmp_path}/shapes",
        "trainer.max_epochs=4",
        "trainer.check_val_every_n_epoch=2",
        "trainer.log_every_n_steps=5",
        "callbacks.last_within_epoch.every_n_train_steps=20",
        "logger=[tensorboard,wandb,mlflow]",
        "logger.wandb.offline=true",
        f"logger.mlflow.folder={tmp_path}/mlflow",
    ]
    whole, run = tmp_path / "whole", tmp_path / "run"
    command(*common, f"run_dir={whole}", cwd=tmp_path)
    ends: list[str] = []
    start = time.monotonic()
    while not ends or ends[-1] != "0":
        process = command(*common, f"run_dir={run}", "resume=auto", cwd=tmp_path, wait=False)
        if len(ends) < KILLS:
            last = run / "checkpoints" / "last.ckpt"
            before = last.stat().st_mtime if last.exists() else 0.0
            while not last.exists() or last.stat().st_mtime == before:  # or it would never end
                if process.poll() is not None:
                    break
                time.sleep(0.2)
            time.sleep(drawn.uniform(0, 4))
            process.send_signal(drawn.choice(SIGNALS))
        output, _ = process.communicate(timeout=600)
        ends.append(str(process.returncode))
        assert process.returncode in (0, -9, 138, 143), output[-3000:]
    print(f"seed {seed}: {' '.join(ends)}, {time.monotonic() - start:.0f} s", file=sys.stderr)
    assert len(ends) > KILLS // 2

    states = [
        torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (whole, run)
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == 500
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key]), key
    expected = of_steps(of_csv(whole))
    assert of_steps(of_csv(run)) == expected
    trackers = json.loads((run / "run.json").read_text())["trackers"]
    wandb, wandb_shown, ids, _ = of_wandb(run)
    board, board_shown = of_tensorboard(run / "tensorboard")
    mlflow, mlflow_shown = of_mlflow(
        f"sqlite:///{tmp_path}/mlflow/mlflow.db", trackers["mlflow"]["id"]
    )
    assert ids == {trackers["wandb"]["id"]}
    for contents in (wandb, board, mlflow):
        for key, (value,) in expected.items():
            assert contents[key] == [pytest.approx(value, rel=1e-6, abs=1e-9)], key
        assert all(len(values) == 1 for values in contents.values())
        steps = {step for name, step in contents if name == "train/images_per_second"}
        assert steps == {step for name, step in expected if name == "train/loss"}
    for shown in (wandb_shown, board_shown, mlflow_shown):
        assert all(len(values) == 1 for values in shown.values())
