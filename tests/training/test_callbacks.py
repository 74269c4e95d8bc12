"""What callbacks show and log."""

import csv
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import Progress, TextColumn

from mrcnn_lightning.training.callbacks.gradient_norm import GradientNorm
from mrcnn_lightning.training.callbacks.loss_progress_bar import LossProgressBar


def test_the_progress_bar_fits_a_screen_of_80_characters() -> None:
    """As rich draws it, losses of all parts and of a cascade's stages included."""
    bar = LossProgressBar(refresh_rate=1)
    names = ["objectness", "rpn_box_reg", "classifier_stage1", "classifier", "box_reg", "mask"]
    losses = {f"train/loss_{name}": 0.123 for name in names} | {"train/loss": 1.234}
    trainer: Any = SimpleNamespace(progress_bar_metrics=losses, loggers=[], state=None)
    metrics = bar.get_metrics(trainer, SimpleNamespace())  # type: ignore[arg-type]
    assert metrics == {"loss": "1.23 rpn .25 cls .25 box .12 mask .12"}
    columns = [*bar.configure_columns(trainer), TextColumn(f"loss: {metrics['loss']}")]
    console = Console(width=200, record=True, file=StringIO())
    with Progress(*columns, console=console) as progress:
        progress.add_task("Epoch 8/8 ", total=125, completed=60)
    lines = [line.rstrip() for line in console.export_text().splitlines() if line.strip()]
    assert len(lines) == 1 and "mask .12" in lines[0] and len(lines[0]) <= 80


class Sums(lightning.LightningModule):
    """Two layers, one of them without gradients, on batches of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        self.norms: list[float] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.used(batch).square().sum() * (batch_idx + 1)

    def on_after_backward(self) -> None:
        """What clipping says the norm is, by torch's older function."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, float("inf"))))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_the_norm_of_gradients_is_logged_before_clipping(tmp_path: Path) -> None:
    module, logger = Sums(), CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=logger,
        callbacks=[GradientNorm()],
        log_every_n_steps=2,
        gradient_clip_val=1e-3,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(6, 3)))
    with Path(logger.log_dir, "metrics.csv").open() as file:
        logged = {int(r["step"]): float(r["train/grad_norm"]) for r in csv.DictReader(file)}
    assert logged == {step: pytest.approx(module.norms[step]) for step in (1, 3, 5)}
    assert len(set(module.norms)) == 6 and min(module.norms) > 1e-3
