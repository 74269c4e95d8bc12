"""How fast training is, and how much of its time is spent waiting for data."""

import time
from collections import deque
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from mrcnn_lightning.data.loader import TimedLoader
from mrcnn_lightning.structures import Batch


class _Moment(NamedTuple):
    """The end of a batch."""

    seconds: float
    waited: float  # seconds for data, so far
    images: int  # so far


class Throughput(Callback):
    """Logs `train/images_per_second` of all ranks together, and `train/data_wait` of this one.

    That is the share of training's time that it waits for data, in [0, 1]. Both over the last
    `trainer.log_every_n_steps` batches, evaluations aside. On a GPU a wait counts too that the
    device does not notice, since it still has work.
    """

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start."""
        most = max(trainer.log_every_n_steps, 1) + 1  # type: ignore[attr-defined]
        self._moments: deque[_Moment] = deque(maxlen=most)
        self._images = 0
        self._note(trainer)

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start anew."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._moments.clear()
            self._note(trainer)

    def _note(self, trainer: lightning.Trainer) -> None:
        loader = trainer.train_dataloader
        assert isinstance(loader, TimedLoader)
        self._moments.append(_Moment(time.perf_counter(), loader.seconds_waited, self._images))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Log."""
        self._images += len(batch) * trainer.world_size
        self._note(trainer)
        first, last = self._moments[0], self._moments[-1]
        seconds = last.seconds - first.seconds
        # Tensors on the host: a number would be copied to the device, and the host would wait.
        values = {
            "train/images_per_second": torch.tensor((last.images - first.images) / seconds),
            "train/data_wait": torch.tensor((last.waited - first.waited) / seconds),
        }
        pl_module.log_dict(values, batch_size=len(batch))
