"""The model's parts on the screen."""

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from rich.table import Table
from rich.text import Text

from mrcnn_lightning.training.callbacks.show import show


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
        show(table)
