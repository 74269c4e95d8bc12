"""Callbacks that Lightning lacks."""

import logging
import shutil
import time
from collections import deque
from pathlib import Path
from typing import Any

import lightning
import rich
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ModelSummary, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mrcnn_lightning.data.loader import TimedLoader
from mrcnn_lightning.evaluation.coco import IOU_TYPES, NUMBERS
from mrcnn_lightning.inference.drawing import draw, save, side_by_side
from mrcnn_lightning.ops.masks import resized_crops
from mrcnn_lightning.structures import Batch, Detections
from mrcnn_lightning.training.task import DetectionTask


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which would forget the best score in another folder.

    A resumed run writes to a folder of its own, and starts it with a copy of the best checkpoint.
    An evaluation that comes after a fit counts too.

    Args:
        dirpath: folder for `best.ckpt`.
        monitor: the metric.
        mode: `max` or `min`, which is best.
    """

    def __init__(self, *, dirpath: str, monitor: str, mode: str) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Save if this is the best so far."""
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.optimizers:  # after a fit
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        else:
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best checkpoint and its score."""
        old = Path(state_dict["best_model_path"])
        assert self.dirpath is not None
        if state_dict["dirpath"] != self.dirpath and old.is_file():
            new = Path(self.dirpath, old.name)
            _copy(old, new)
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(new),
                "kth_best_model_path": str(new),
                "best_k_models": {str(new): state_dict["best_model_score"]},
                "last_model_path": "",
            }
        super().load_state_dict(state_dict)


@rank_zero_only
def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


class LossProgressBar(RichProgressBar):
    """Lightning's progress bar, which would read every loss from the device at every step.

    Args:
        refresh_rate: steps from one look to the next.

    Raises:
        ValueError: it is less than 1.
    """

    def __init__(self, *, refresh_rate: int) -> None:
        if refresh_rate < 1:
            raise ValueError(
                f"refresh_rate={refresh_rate} is less than 1; to leave the bar out, set it to null"
            )
        super().__init__(refresh_rate=refresh_rate)

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


class APTable(Callback):
    """Prints COCO's numbers after every evaluation.

    Args:
        per_class: whether AP of each class is printed too.
    """

    def __init__(self, *, per_class: bool) -> None:
        self.per_class = per_class

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Print, unless this was only the check before training."""
        if not trainer.sanity_checking:
            self._print(trainer, pl_module)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print."""
        self._print(trainer, pl_module)

    def _print(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        assert isinstance(task, DetectionTask)
        if not trainer.is_global_zero:
            return
        kinds = [kind for kind in IOU_TYPES if f"{kind}_ap" in task.results]
        table = Table(title=f"COCO AP after {trainer.global_step} steps", title_justify="left")
        table.add_column()
        for kind in kinds:
            table.add_column(kind, justify="right")
        rows = list(NUMBERS)
        if self.per_class:
            rows += [f"ap/{name}" for name in task.model.class_names]
        for row in rows:
            values = [task.results.get(f"{kind}_{row}", -1.0) for kind in kinds]
            # A class may be called [red], which as a plain string would be markup.
            table.add_row(Text(row), *(f"{value:.3f}" if value >= 0 else "-" for value in values))
        _show(table)


class PartsTable(ModelSummary):
    """Prints the model's parts and their parameters before training.

    Lightning's own table has FLOPs too, which would be 0; `mrcnn info` counts them.

    Args:
        max_depth: of the modules that are listed.
    """

    def __init__(self, *, max_depth: int) -> None:
        super().__init__(max_depth=max_depth)

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Print."""
        columns = dict(summary_data)
        title = f"{total_parameters:,} parameters, {trainable_parameters:,} of them trained"
        table = Table("part", "what", title=title, title_justify="left")
        table.add_column("parameters", justify="right")
        for row in zip(*(columns[key] for key in ("Name", "Type", "Params")), strict=True):
            table.add_row(*(Text(cell) for cell in row))
        _show(table)


def _show(table: Table) -> None:
    """Print a table on the screen, above a progress bar if there is one, and in the run's log."""
    rich.get_console().print(table)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            Console(file=handler.stream, width=100).print(table)


class PredictionPictures(Callback):
    """Draws predictions beside ground truth: to the run's folder, and to loggers that show images.

    Args:
        folder: where the pictures are written, replaced at every validation.
        num: how many images, the first of the validation set.
        min_score: less confident detections are not drawn.
    """

    def __init__(self, *, folder: str, num: int, min_score: float) -> None:
        self.folder = Path(folder)
        self.num = num
        self.min_score = min_score
        self._pictures: list[Tensor] = []

    def on_validation_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start anew."""
        self._pictures = []

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw what is still wanted."""
        assert isinstance(pl_module, DetectionTask)
        if trainer.is_global_zero and not trainer.sanity_checking:
            for image in range(min(len(batch), self.num - len(self._pictures))):
                names = pl_module.model.class_names
                self._pictures.append(
                    _picture(batch, outputs["detections"], image, names, self.min_score)
                )

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write and log the pictures."""
        if not self._pictures:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(self._pictures):
            save(picture, self.folder / f"val_{number:02d}.png")
            for logger in trainer.loggers:
                name, step = f"val/picture_{number:02d}", trainer.global_step
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(name, picture, step)
                if isinstance(logger, WandbLogger):
                    logger.log_image(name, [picture.permute(1, 2, 0).numpy()], step)


def _picture(
    batch: Batch, detections: Detections, image: int, class_names: list[str], min_score: float
) -> Tensor:
    """Ground truth on the left, predictions on the right: (3, h, 2 w + gap) uint8."""
    x1, y1, x2, y2 = (int(side) for side in batch.windows[image].tolist())
    size, origin = (y2 - y1, x2 - x1), batch.windows[image, :2].repeat(2).cpu()
    pixels = batch.images[image, :, y1:y2, x1:x2].cpu()
    found = (detections.scores[image] >= min_score) & (detections.labels[image] > 0)
    pred_boxes, pred_masks = detections.boxes[image, found].cpu() - origin, None
    if detections.masks is not None:
        masks = detections.masks[image, found].cpu()
        pred_masks = resized_crops(masks, pred_boxes, size)
    assert batch.targets is not None
    real = batch.targets.trainable[image]
    gt_boxes, gt_masks = batch.targets.boxes[image, real].cpu() - origin, None
    if batch.targets.masks is not None and batch.targets.mask_frames is not None:
        masks, frames = batch.targets.masks[image, real], batch.targets.mask_frames[image, real]
        gt_masks = resized_crops(masks.float().cpu(), frames.cpu() - origin, size)
    truth = draw(
        pixels,
        boxes=gt_boxes,
        labels=batch.targets.labels[image, real],
        class_names=class_names,
        masks=gt_masks,
    )
    prediction = draw(
        pixels,
        boxes=pred_boxes,
        labels=detections.labels[image, found],
        class_names=class_names,
        scores=detections.scores[image, found],
        masks=pred_masks,
    )
    return side_by_side(truth, prediction)
