"""Ends a fit that gets no better."""

import lightning
from lightning.pytorch import callbacks

from mrcnn_lightning.training.task import DetectionTask


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's EarlyStopping, which looks at scores once they are there."""

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Look, now or later."""
        assert isinstance(pl_module, DetectionTask)
        look = super().on_validation_end
        pl_module.when_scored(lambda: look(trainer, pl_module))
