"""A progress bar with the losses."""

from typing import Any, cast

import lightning
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
)
from rich.progress import ProgressColumn, TextColumn, TimeRemainingColumn

from mrcnn_lightning.structures import Batch
from mrcnn_lightning.training.step_scalars import StepScalars
from mrcnn_lightning.user_error import UserError

# Short names, and how the names of the losses of each part begin.
_PARTS = {
    "rpn": ("train/loss_objectness", "train/loss_rpn"),
    "cls": ("train/loss_classifier",),
    "box": ("train/loss_box_reg",),
    "mask": ("train/loss_mask",),
    "loss": ("train/loss",),
}


class LossProgressBar(RichProgressBar):
    """Lightning's progress bar with the task's losses, read from the device when the bar moves.

    Lightning reads each value that is logged for a bar from the device by itself, at every step.

    Args:
        refresh_rate: steps from one look to the next.

    Raises:
        UserError: it is less than 1.
    """

    def __init__(self, *, refresh_rate: int) -> None:
        if refresh_rate < 1:
            raise UserError(
                f"refresh_rate={refresh_rate} is less than 1; to leave the bar out, set it to null"
            )
        super().__init__(refresh_rate=refresh_rate)

    def configure_columns(self, trainer: lightning.Trainer) -> list[ProgressColumn]:
        """Columns that leave room for the losses on a screen of 80 characters."""
        return [
            TextColumn("{task.description}"),
            CustomBarColumn(
                bar_width=5,
                complete_style=self.theme.progress_bar,
                finished_style=self.theme.progress_bar_finished,
                pulse_style=self.theme.progress_bar_pulse,
            ),
            BatchesProcessedColumn(style=self.theme.batch_progress),
            TimeRemainingColumn(),
        ]

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The sum of the losses, and those of the RPN, the classes, the boxes and the masks."""
        scalars = cast(StepScalars, pl_module.scalars)
        parts: dict[str, float] = {}
        for name, value in scalars.on_host().items():
            part = next((short for short, start in _PARTS.items() if name.startswith(start)), None)
            if part is not None:
                parts[part] = parts.get(part, 0.0) + float(value)
        if "loss" not in parts:
            return {}
        total = parts.pop("loss")
        losses = [f"{part} {value:.2f}".replace(" 0.", " .") for part, value in parts.items()]
        return {"loss": " ".join([f"{total:.2f}", *losses])}

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Move the bar on, if it is time."""
        if (batch_idx + 1) % self.refresh_rate == 0 or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
