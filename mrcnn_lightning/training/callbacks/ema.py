"""Moving averages of the weights."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mrcnn_lightning.user_error import UserError


class EMA(WeightAveraging):
    """Lightning's WeightAveraging with an exponential moving average, after every step.

    Evaluations use the averages, and checkpoints have them as the model's weights, which prediction
    reads; what training goes on with lies beside them. A checkpoint may also be written within an
    evaluation here, where the two have changed places.

    Args:
        decay: how much of the average a step keeps, between 0 and 1.

    Raises:
        UserError: the decay is not.
    """

    def __init__(self, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"decay={decay} is not at least 0 and less than 1")
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._are_swapped = False

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Make the averages on the device where the model will be; now it is still on the host."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:  # its count is looked at in every step
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_validation_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Put the averages into the model; after a fit they are there already."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Put training's weights back."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Leave the averages in the model, and keep training's weights for what is saved yet."""
        self._swap_models(pl_module)

    def _swap_models(self, pl_module: lightning.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._are_swapped = not self._are_swapped

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Put the averages into `state_dict`, and training's weights into `current_model_state`."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._are_swapped:
            averages = checkpoint["current_model_state"]
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = averages
