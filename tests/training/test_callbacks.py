"""What callbacks show and log."""

import csv
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TextColumn

from mrcnn_lightning.data.datamodule import COCODataModule
from mrcnn_lightning.inference.drawing import class_color
from mrcnn_lightning.structures import Targets
from mrcnn_lightning.training.callbacks.gradient_norm import GradientNorm
from mrcnn_lightning.training.callbacks.loss_progress_bar import LossProgressBar
from mrcnn_lightning.training.callbacks.preview import Preview
from mrcnn_lightning.training.step_scalars import StepScalars
from tests.conftest import make_batch


def test_the_progress_bar_fits_a_screen_of_80_characters() -> None:
    """As rich draws it, losses of all parts and of a cascade's stages included."""
    bar = LossProgressBar(refresh_rate=1)
    names = ["objectness", "rpn_box_reg", "classifier_stage1", "classifier", "box_reg", "mask"]
    trainer: Any = SimpleNamespace(loggers=[], state=None)
    task: Any = SimpleNamespace(scalars=StepScalars())
    assert bar.get_metrics(trainer, task) == {}
    losses = {f"loss_{name}": torch.tensor(0.123) for name in names} | {"loss": torch.tensor(1.234)}
    task.scalars.keep(losses)
    metrics = bar.get_metrics(trainer, task)
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


@pytest.mark.parametrize(("channels", "dtype"), [(3, torch.uint8), (5, torch.float32)])
def test_a_preview_is_drawn_on_the_canvas(
    channels: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """One object that fills its box, in an image that lies in the middle of a black canvas."""
    images = torch.zeros(1, channels, 256, 512, dtype=dtype)
    shades = torch.linspace(100, 200, 256).expand(128, 256)
    images[0, :, 64:192, 128:384] = shades.to(dtype)
    box = torch.tensor([[[160.0, 96, 224, 160]]])
    targets = Targets(
        boxes=box,
        labels=torch.tensor([[1]]),
        crowd=torch.tensor([[False]]),
        masks=torch.ones(1, 1, 28, 28, dtype=torch.uint8),
        mask_frames=box,
    )
    one = make_batch([(8, 8)], [[]], [[]])
    batch = replace(
        one, images=images, windows=torch.tensor([[128.0, 64, 384, 192]]), targets=targets
    )
    data = Mock(spec=COCODataModule, preview=1, class_names=["disc"])
    data.preview_batches.return_value = [batch, batch]
    trainer = Mock(datamodule=data, is_global_zero=True, loggers=[])
    Preview(folder=str(tmp_path), bands=None).on_fit_start(trainer, Mock())
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.size == (512, 256)
        assert picture.getpixel((10, 10)) == picture.getpixel((500, 250)) == (0, 0, 0)
        red, green, blue = picture.getpixel((300, 150))  # of the image, which is grey
        assert red == green == blue and red > 100
        assert picture.getpixel((160, 150)) == class_color(1)  # the box's left side
        inside, half = picture.getpixel((200, 140)), [side // 2 for side in class_color(1)]
        shine = {value - color for value, color in zip(inside, half, strict=True)}
        assert len(shine) == 1 and 10 < shine.pop() < 128  # of the grey image, through the mask
