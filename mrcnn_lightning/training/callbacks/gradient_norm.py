"""The norm of all gradients."""

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class GradientNorm(Callback):
    """Logs `train/grad_norm`, the Euclidean norm of all gradients together, before any clipping.

    Only at steps that are logged, and nobody waits for the device. It is infinite or NaN at a step
    that fp16 skips.
    """

    def on_before_optimizer_step(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        optimizer: Optimizer,
    ) -> None:
        """Log."""
        if not trainer._logger_connector.should_update_logs:
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        pl_module.log("train/grad_norm", norm / _scale(trainer, optimizer))


def _scale(trainer: lightning.Trainer, optimizer: Optimizer) -> Tensor | float:
    """What fp16's gradients are still multiplied by, where the optimizer itself divides them."""
    plugin = trainer.precision_plugin
    divides = getattr(optimizer, "_step_supports_amp_scaling", False)
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None and divides:
        scale: Tensor | None = plugin.scaler._scale
        return 1.0 if scale is None else scale
    return 1.0
