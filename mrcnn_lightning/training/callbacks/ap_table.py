"""COCO's numbers on the screen."""

import lightning
from lightning.pytorch.callbacks import Callback
from rich.table import Table
from rich.text import Text

from mrcnn_lightning.evaluation.coco import IOU_TYPES
from mrcnn_lightning.training.callbacks.show import show, trackers
from mrcnn_lightning.training.task import DetectionTask


class APTable(Callback):
    """Prints COCO's numbers after every evaluation.

    Args:
        per_class: whether AP of each class is printed too, and a table of it given to trackers.
    """

    def __init__(self, *, per_class: bool) -> None:
        self.per_class = per_class

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Print, unless this was only the check before training."""
        assert isinstance(pl_module, DetectionTask)
        if not trainer.sanity_checking:
            pl_module.when_scored(lambda: self._print(trainer, pl_module, "val"))

    def on_test_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print."""
        assert isinstance(pl_module, DetectionTask)
        self._print(trainer, pl_module, "test")

    def _print(self, trainer: lightning.Trainer, task: DetectionTask, split: str) -> None:
        if not trainer.is_global_zero:
            return
        kinds = [kind for kind in IOU_TYPES if f"{kind}_ap" in task.results]
        table = Table(title=f"COCO AP after {task.scored_at} steps", title_justify="left")
        table.add_column()
        for kind in kinds:
            table.add_column(kind, justify="right")
        numbers = [name for name in task.results if name.startswith("box_") and "/" not in name]
        rows, names = [name.removeprefix("box_") for name in numbers], task.model.class_names
        if self.per_class:
            rows += [f"ap/{name}" for name in names]
            columns = ["class", *(f"{kind}_ap" for kind in kinds)]
            classes = [
                [name, *(task.results.get(f"{kind}_ap/{name}", -1.0) for kind in kinds)]
                for name in names
            ]
            for tracker in trackers(trainer):
                tracker.log_table(f"{split}/ap_per_class", columns, classes, task.logged_at)
        for row in rows:
            values = [task.results.get(f"{kind}_{row}", -1.0) for kind in kinds]
            # A class may be called [red], which as a plain string would be markup.
            table.add_row(Text(row), *(f"{value:.3f}" if value >= 0 else "-" for value in values))
        show(table)
