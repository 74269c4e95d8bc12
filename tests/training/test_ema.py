"""Moving averages of the weights: right, evaluated, in checkpoints, and resumed exactly."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from mrcnn_lightning.checkpoint import load_checkpoint
from mrcnn_lightning.structures import Batch
from mrcnn_lightning.training.callbacks.ema import EMA
from tests.app.test_stopping import SHORT, _listening, go_on, same_end, tells  # noqa: F401

Run = Callable[..., tuple[int, str]]
KEY = "model.box_head.branch.trunk.fc1.weight"


class Notes(Callback):
    """Saves a weight after each step, and as an evaluation uses it.

    Args:
        file: what to write at the end of training.
    """

    def __init__(self, *, file: str) -> None:
        self.file = file
        self.weights: dict[str, torch.Tensor] = {}

    def _note(self, pl_module: Any, what: str) -> None:
        self.weights[what] = pl_module.state_dict()[KEY].clone()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note."""
        self._note(pl_module, f"step {trainer.global_step}")

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, *args: Any
    ) -> None:
        """Note."""
        self._note(pl_module, f"evaluation {trainer.global_step}")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Write."""
        torch.save(self.weights, self.file)


def test_averages_are_evaluated_kept_and_resumed(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    common = [
        *SHORT,
        "trainer.max_epochs=2",
        "trainer.check_val_every_n_epoch=1",
        "callbacks=ema",
        "callbacks.ema.decay=0.8",
    ]
    notes = [
        "+callbacks.notes._target_=tests.training.test_ema.Notes",
        f"+callbacks.notes.file={tmp_path}/weights",
    ]
    status, output = run_main(*tiny(*common, *notes, f"run_dir={tmp_path}/whole"))
    assert status == 0, output[-2000:]
    weights = torch.load(tmp_path / "weights", weights_only=True)
    average = weights["step 1"].double()
    for step in range(2, 13):
        average = 0.8 * average + 0.2 * weights[f"step {step}"].double()
        if step in (6, 12):
            torch.testing.assert_close(weights[f"evaluation {step}"].double(), average)
    last = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)
    assert torch.equal(last["state_dict"][KEY], weights["evaluation 12"])
    assert torch.equal(last["current_model_state"][KEY], weights["step 12"])
    model = load_checkpoint(tmp_path / "whole/checkpoints/best.ckpt").model
    assert KEY.removeprefix("model.") in model.state_dict()

    # Stopped in a step, and within an evaluation, where weights and averages have changed places.
    told = tells((signal.SIGTERM, 2, "training"), (signal.SIGINT, 6, "evaluation"))
    status, output = run_main(*tiny(*common, *told, f"run_dir={tmp_path}/stopped"))
    assert status == 143, output[-2000:]
    status, output = run_main(*go_on(output))
    assert status == 130, output[-2000:]
    status, output = run_main(*(each for each in go_on(output) if "callbacks.tells" not in each))
    assert status == 0, output[-2000:]
    same_end(tmp_path / "whole", tmp_path / "stopped")
    resumed = torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)
    for key, value in last["current_model_state"].items():
        assert torch.equal(value, resumed["current_model_state"][key]), key


def test_a_checkpoint_after_the_fit_has_both(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Stopped within the evaluation that follows the fit."""
    status, output = run_main(
        *tiny(*SHORT, "callbacks=ema", "callbacks.ema.decay=0.5", "trainer.max_steps=3"),
        *tells((signal.SIGTERM, 3, "evaluation")),
        "trainer.check_val_every_n_epoch=9",
        "+callbacks.notes._target_=tests.training.test_ema.Notes",
        f"+callbacks.notes.file={tmp_path}/weights",
        f"run_dir={tmp_path}/run",
    )
    assert status == 143, output[-2000:]
    weights = torch.load(tmp_path / "weights", weights_only=True)
    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert torch.equal(last["current_model_state"][KEY], weights["step 3"])
    average = 0.5 * (0.5 * (weights["step 1"] + weights["step 2"]) + weights["step 3"])
    torch.testing.assert_close(last["state_dict"][KEY], average)


def test_a_decay_out_of_range() -> None:
    with pytest.raises(ValueError, match="decay=1 is not at least 0 and less than 1"):
        EMA(decay=1)
