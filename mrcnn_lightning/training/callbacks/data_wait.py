"""How much of training's time is spent waiting for data."""

import time
from collections import deque
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from mrcnn_lightning.data.loader import TimedLoader
from mrcnn_lightning.structures import Batch


class DataWait(Callback):
    """Logs `train/data_wait`, the share of training's time that it waits for data, in [0, 1].

    Of this rank, over the last `trainer.log_every_n_steps` batches, evaluations aside. On a GPU a
    wait counts too that the device does not notice, since it still has work.
    """

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start."""
        # When each of the last batches ended, and how long training had waited until then.
        most = max(trainer.log_every_n_steps, 1) + 1  # type: ignore[attr-defined]
        self._ends: deque[tuple[float, float]] = deque(maxlen=most)
        self._note(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start anew."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._ends.clear()
            self._note(trainer)

    def _note(self, trainer: lightning.Trainer) -> None:
        loader = trainer.train_dataloader
        assert isinstance(loader, TimedLoader)
        self._ends.append((time.perf_counter(), loader.seconds_waited))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Log."""
        self._note(trainer)
        (first, waited_at_first), (last, waited) = self._ends[0], self._ends[-1]
        # A tensor on the host: a number would be copied to the device, and the host would wait.
        share = torch.tensor((waited - waited_at_first) / (last - first))
        pl_module.log("train/data_wait", share, batch_size=len(batch))
