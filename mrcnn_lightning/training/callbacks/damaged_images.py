"""How many images could not be read."""

import logging

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from mrcnn_lightning.data.dataset import COCODataset
from mrcnn_lightning.data.loader import TimedLoader

log = logging.getLogger(__name__)

_NAMES_SHOWN = 5


class DamagedImages(Callback):
    """Logs `train/damaged_images` and `val/damaged_images` and names the files.

    They are the images that could not be read up to now in this process's life, on any rank, and
    that others stood in for (`data.damaged_images=skip`). An evaluation is over the others.
    """

    def __init__(self) -> None:
        self._said: dict[str, int] = {}

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Log those of training."""
        self._log(pl_module, trainer.train_dataloader, "train")

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Log those of an evaluation."""
        self._log(pl_module, trainer.val_dataloaders, "val")

    def on_test_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Log those of a test."""
        self._log(pl_module, trainer.test_dataloaders, "test")

    def on_predict_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Name those of a prediction."""
        self._log(pl_module, trainer.predict_dataloaders, "predict")

    def _log(self, task: lightning.LightningModule, loader: object, split: str) -> None:
        assert isinstance(loader, TimedLoader) and isinstance(loader.dataset, COCODataset)
        dataset = loader.dataset
        if not dataset.skip_damaged:
            return
        ranks = task.all_gather(dataset.is_damaged.to(task.device, torch.uint8))
        assert isinstance(ranks, torch.Tensor)
        places = ranks.view(-1, len(dataset.is_damaged)).amax(0).nonzero()[:, 0].tolist()
        if split != "predict":  # where Lightning logs nothing
            task.log(f"{split}/damaged_images", float(len(places)), sync_dist=True)
        if len(places) > self._said.get(split, 0) and task.global_rank == 0:
            self._said[split] = len(places)
            names = ", ".join(str(dataset.path(place)) for place in places[:_NAMES_SHOWN])
            more = ", ..." if len(places) > _NAMES_SHOWN else ""
            log.warning("%d images cannot be read and are skipped: %s%s", len(places), names, more)
