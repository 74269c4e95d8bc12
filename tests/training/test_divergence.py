"""Training that is no longer finite."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from mrcnn_lightning.training.divergence import DivergedError, Divergence, refuse_diverged
from tests.training.test_task import build


class Breaks(Callback):
    """Makes a weight not finite after some steps, as a step of the optimizer would.

    Args:
        after: steps.
    """

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Break it."""
        if trainer.global_step == self.after:
            with torch.no_grad():
                pl_module.model.box_head.branch.trunk.fc1.weight[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("every", "message"),
    [
        (3, "the loss is not finite at step 3: loss_objectness 0.*nan.*; lower optimizer.lr"),
        (1, "fc1.weight is not finite after 3 steps, although the losses were, and is not written"),
    ],
    ids=["the loss shows it", "the loss does not show it yet"],
)
def test_what_is_not_finite_is_never_written(
    tiny: Callable[..., list[str]], tmp_path: Path, every: int, message: str
) -> None:
    """Between two looks at the losses, as the logging interval is longer than the run."""
    task, data, trainer = build(tiny("trainer.max_epochs=1", "data.num_workers=0"))
    last = ModelCheckpoint(
        dirpath=tmp_path, filename="last", every_n_train_steps=every, enable_version_counter=False
    )
    trainer.callbacks += [Breaks(3), last]
    if every == 3:  # written before the weights break
        trainer.callbacks.reverse()
    with pytest.raises(ValueError, match=message):
        trainer.fit(task, datamodule=data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == (3 if every == 3 else 2)
    for value in saved["state_dict"].values():
        assert torch.isfinite(value).all()
    refuse_diverged(saved, 0)


def test_the_step_where_it_began_and_its_losses() -> None:
    def losses(*values: float) -> dict[str, torch.Tensor]:
        return dict(zip(("first", "second"), torch.tensor(values), strict=True))

    def images(step: int) -> torch.Tensor:
        return torch.tensor([[step, step + 1], [0, 0]])

    kept = Divergence(losses(1.0, 2.0), images(0))
    for step, values in enumerate([(1.0, 2.0), (1.0, math.inf), (math.nan, math.nan), (1.0, 2.0)]):
        kept.note(losses(*values), images(step), step)
    with pytest.raises(
        DivergedError, match="not finite at step 1: first 1, second inf; lower"
    ) as first:
        kept.check(lambda own: own)
    assert (first.value.step, first.value.rank, first.value.image_ids) == (1, 0, [1, 2])
    healthy = Divergence(losses(1.0, 2.0), images(0))
    healthy.note(losses(1.0, 2.0), images(0), 0)
    healthy.check(lambda own: own)
    # Another rank's may have been earlier.
    others = iter([torch.tensor([0.0, math.nan, 3.0]), torch.tensor([[7, 8], [9, 9]])])
    with pytest.raises(DivergedError, match="not finite at step 0: first nan, second 3") as first:
        kept.check(lambda own: torch.stack([own, next(others)]))
    assert (first.value.rank, first.value.image_ids, first.value.seeds) == (1, [7, 8], [9, 9])


def test_the_optimizers_state_is_looked_at_too() -> None:
    state = {0: {"step": torch.tensor(3.0), "exp_avg": torch.tensor([0.0, torch.inf])}}
    checkpoint = {"state_dict": {"weight": torch.ones(2)}, "optimizer_states": [{"state": state}]}
    with pytest.raises(ValueError, match=r"optimizer_states.0.state.0.exp_avg is not finite"):
        refuse_diverged(checkpoint, 3)
