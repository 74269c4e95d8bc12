"""A run that diverges leaves a small file, from which `mrcnn replay` finds where it began."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mrcnn_lightning.app.replay import replay_arguments
from mrcnn_lightning.structures import Batch
from mrcnn_lightning.training.callbacks.first_not_finite import FirstNotFinite
from tests.conftest import build_model, command, make_batch

Run = Callable[..., tuple[int, str]]
PROGRAM = [sys.executable, "-m", "mrcnn_lightning"]


def test_two_ranks_stop_and_the_module_is_named(
    tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    broken = "model.box_head.branch.trunk.fc2"
    run = tmp_path / "it's a run"
    quoted = str(run).replace("'", r"\'")
    process = command(
        *tiny(
            "trainer.accelerator=cpu",
            "trainer.devices=2",
            "trainer.log_every_n_steps=3",
            "callbacks.last_within_epoch.every_n_train_steps=3",
            "data.num_workers=0",
            "+callbacks.breaks._target_=tests.training.recorder.BreaksActivation",
            f"+callbacks.breaks.module={broken}",
            "+callbacks.breaks.step=7",
            "+callbacks.breaks.rank=1",
            f"run_dir='{quoted}'",
        ),
        cwd=tmp_path,
        wait=False,
    )
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output[-2000:]
    assert "error: the loss is not finite at step 7: " in output
    file = run / "replay.json"
    assert f"where it began: mrcnn replay {file}" in output
    content = json.loads(file.read_text())
    assert (content["step"], content["rank"]) == (7, 1) and len(content["image_ids"]) == 2
    assert content["checkpoint"] == str(run / "checkpoints" / "last.ckpt")
    assert file.stat().st_size < 30_000
    with (run / "csv" / "metrics.csv").open() as table:
        assert max(int(row["step"]) for row in csv.DictReader(table)) < 7 + 3

    process = command("replay", str(file), cwd=tmp_path, wait=False, program=PROGRAM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert (
        f"error: step 7: the first module whose output is not finite is {broken} (Linear), whose "
        "input and weights are finite (rank 1)" in output
    ), output[-2000:]


class BreaksBackward(Callback):
    """Makes a gradient within the mask head's backward pass not a number, after some steps.

    Args:
        step: how many.
    """

    def __init__(self, *, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Break it."""
        if trainer.global_step == self.step:
            trunk = pl_module.model.box_head.branch.trunk.fc2
            trunk.register_forward_hook(lambda module, inputs, output: output + _Nan.apply(output))


class _Nan(torch.autograd.Function):
    """Nothing, whose gradient is not a number."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.zeros_like(features)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * torch.nan


def test_what_the_step_before_made_of_the_weights(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    common = tiny(
        "trainer.log_every_n_steps=2",
        "data.num_workers=0",
        "trainer.limit_val_batches=0",
        "+callbacks.breaks._target_=tests.app.test_replay.BreaksBackward",
        "+callbacks.breaks.step=2",
    )
    status, output = run_main(*common, f"run_dir={tmp_path}/run")
    assert status == 1 and "is not finite at step 3: " in output, output[-2000:]
    file = tmp_path / "run" / "replay.json"
    assert json.loads(file.read_text())["checkpoint"] is None
    assert "hydra.mode=RUN" in replay_arguments(file)  # a trial's search would begin again
    status, output = run_main(*replay_arguments(file))
    assert status == 1
    assert "error: the backward pass: Function '_NanBackward' returned nan values" in output

    # Without what broke it: the file is of another run, or the cause is not in the run.
    content = json.loads(file.read_text())
    content["overrides"] = [each for each in content["overrides"] if ".breaks" not in each]
    file.write_text(json.dumps(content))
    status, output = run_main(*replay_arguments(file))
    assert status == 1 and "error: step 3 is finite this time" in output, output[-2000:]
    content["overrides"].append("optimizer.lr=0.5")
    file.write_text(json.dumps(content))
    status, output = run_main(*replay_arguments(file))
    assert status == 1 and "is of a run with another optimizer" in output, output[-2000:]


def test_convolutions_whose_norms_are_folded_in_are_named() -> None:
    model = build_model("model=mask_rcnn", "backbone=resnet18")
    finder = FirstNotFinite(step=0)
    for name, module in model.named_modules(prefix="model"):
        module.register_forward_hook(finder._look_at(name, False))
    with torch.no_grad():
        model.backbone.body.get_submodule("layer2.0.conv1").weight[0, 0] = torch.nan
    model.features(make_batch([(64, 64)], [[[8, 8, 40, 40]]], [[1]]))
    assert finder._found is not None
    assert finder._found.startswith("model.backbone.body.layer2.0.conv1 (Conv2d), whose weights")


@pytest.mark.parametrize("text", [None, "no json", '{"step": 3}'])
def test_files_that_no_run_left(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "replay.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=r"replay.json is no replay.json, which a run"):
        replay_arguments(file)
