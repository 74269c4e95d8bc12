"""Curves of precision over recall."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
from lightning.pytorch.callbacks import Callback

from mrcnn_lightning.evaluation.scoring import IOUS, RECALLS
from mrcnn_lightning.training.callbacks.show import show_picture
from mrcnn_lightning.training.figures import draw_curves
from mrcnn_lightning.training.task import DetectionTask
from mrcnn_lightning.user_error import UserError


class PrecisionRecall(Callback):
    """Draws COCO's precision over recall after every evaluation, of each class and their mean.

    They are `val/box_pr` and `val/mask_pr` (or `test/...`), for trackers and as files whose json
    has the numbers: `recall`, and for each IoU the precisions of the `mean` and of the `classes`
    that are there. The area below a curve is its AP.

    Args:
        folder: for the files.
        ious: each has a panel; COCO knows 0.5, 0.55, ..., 0.95.
    """

    def __init__(self, *, folder: str, ious: list[float]) -> None:
        unknown = [iou for iou in ious if iou not in IOUS]
        if unknown or not ious:
            raise UserError(
                f"callbacks.precision_recall.ious={ious} is not a choice of {list(IOUS)}"
            )
        self.folder = Path(folder)
        self.ious = ious

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
        if task.metric.evaluated is None:  # on other ranks
            return
        for kind, precision in task.metric.evaluated.precision.items():
            curves = self._curves(precision, task.model.class_names)
            show_picture(
                trainer,
                f"{split}/{kind}_pr",
                draw_curves(kind, curves),
                step=task.logged_at,
                folder=self.folder,
                numbers=curves,
            )

    def _curves(self, precision: npt.NDArray[np.float64], class_names: list[str]) -> dict[str, Any]:
        curves: dict[str, Any] = {"recall": list(RECALLS)}
        for iou in self.ious:
            values = precision[IOUS.index(iou)]  # (RECALLS, K)
            there = np.flatnonzero((values > -1).all(axis=0))
            classes = {class_names[number]: _rounded(values[:, number]) for number in there}
            mean = _rounded(values[:, there].mean(axis=1)) if len(there) else []
            curves[f"{iou:.2f}"] = {"mean": mean, "classes": classes}
        return curves


def _rounded(precision: npt.NDArray[np.float64]) -> list[float]:
    values: list[float] = precision.round(5).tolist()
    return values
