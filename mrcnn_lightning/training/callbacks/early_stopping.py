"""Ends a fit that gets no better."""

import lightning
from lightning.pytorch import callbacks

from mrcnn_lightning.training.task import DetectionTask


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's EarlyStopping, which looks at scores once they are there.

    Args:
        monitor: the metric.
        mode: `max` or `min`, which is best.
        patience: evaluations without a better one.
        min_delta: what a better one is better by.
    """

    def __init__(self, *, monitor: str, mode: str, patience: int, min_delta: float) -> None:
        super().__init__(
            monitor,
            mode=mode,
            patience=patience,
            min_delta=min_delta,
            check_on_train_epoch_end=False,
        )

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Look, now or later."""
        assert isinstance(pl_module, DetectionTask)
        look = super().on_validation_end
        pl_module.when_scored(lambda: look(trainer, pl_module))
