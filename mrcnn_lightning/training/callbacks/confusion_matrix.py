"""A table of which classes are taken for which."""

from pathlib import Path

import lightning
from lightning.pytorch.callbacks import Callback

from mrcnn_lightning.evaluation.confusion import confusion_matrix
from mrcnn_lightning.training.callbacks.show import show_picture
from mrcnn_lightning.training.figures import draw_confusion
from mrcnn_lightning.training.task import DetectionTask
from mrcnn_lightning.user_error import UserError


class ConfusionMatrix(Callback):
    """Draws true class by found class after every evaluation, boxes compared.

    It is `val/confusion` (or `test/...`), for trackers and as a file whose json has the numbers.
    The last row is what was found where nothing is, the last column what was missed.

    Args:
        folder: for the files.
        min_score: less confident detections are left out.
        min_iou: less is no match.
    """

    def __init__(self, *, folder: str, min_score: float, min_iou: float) -> None:
        for key, value in {"min_score": min_score, "min_iou": min_iou}.items():
            if not 0 <= value <= 1:
                raise UserError(f"callbacks.confusion_matrix.{key}={value} is not between 0 and 1")
        self.folder = Path(folder)
        self.min_score = min_score
        self.min_iou = min_iou

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Draw, unless this was only the check before training."""
        assert isinstance(pl_module, DetectionTask)
        if not trainer.sanity_checking:
            pl_module.when_scored(lambda: self._draw(trainer, pl_module, "val"))

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Draw."""
        assert isinstance(pl_module, DetectionTask)
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: lightning.Trainer, task: DetectionTask, split: str) -> None:
        evaluated = task.metric.evaluated
        if evaluated is None:  # on other ranks
            return
        matrix = confusion_matrix(
            evaluated.images,
            evaluated.objects,
            category_ids=task.metric.category_ids,
            min_score=self.min_score,
            min_iou=self.min_iou,
        )
        names = task.model.class_names
        title = f"score {self.min_score:.2f}, IoU {self.min_iou:.2f}"
        numbers = {"names": [*names, "background"], "true_by_found": matrix.tolist()}
        show_picture(
            trainer,
            f"{split}/confusion",
            draw_confusion(title, matrix, names),
            step=task.logged_at,
            folder=self.folder,
            numbers=numbers,
        )
