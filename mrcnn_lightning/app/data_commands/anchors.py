"""`mrcnn data anchors`: how well a model's anchors fit a set, and ones that fit better."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from hydra.errors import HydraException
from rich.console import Console
from rich.table import Table

from mrcnn_lightning.app.data_commands.app import data_app, failed
from mrcnn_lightning.app.data_commands.training_size import training_size
from mrcnn_lightning.app.errors import USER_ERRORS
from mrcnn_lightning.data.anchor_fit import boxes_in_training, fit_anchors, with_cells
from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.checking.boxes import Floats, best_anchor_iou
from mrcnn_lightning.user_error import UserError

# A mean IoU that is greater by less is not worth another set of anchors.
_LITTLE = 0.02


@data_app.command()
def anchors(
    json: Annotated[Path, typer.Argument(help="Annotations in COCO's format.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="As for training: of the model and of the sizes of images."),
    ] = None,
    cache_dir: Annotated[
        str, typer.Option(help="For packed annotations.")
    ] = "~/.cache/mrcnn_lightning",
) -> None:
    """Compare a model's anchors with the objects of a set, and propose sizes and ratios."""
    try:
        if not json.is_file():
            raise UserError(f"{json} is no file: give the annotations in COCO's format")
        training = training_size(overrides or [])
        boxes = boxes_in_training(Annotations.load(json, cache_dir=cache_dir), training.resize)
        if not len(boxes):
            raise UserError(f"{json} has no objects")
    except (*USER_ERRORS, HydraException) as error:
        raise failed(error) from error
    sizes, ratios = fit_anchors(boxes, training.levels)
    table = Table()
    for column in ("anchors", "mean IoU", "IoU 0.5", "IoU 0.7"):
        table.add_column(column, justify="left" if column == "anchors" else "right")
    proposed = with_cells(training.levels, sizes, ratios)
    ious = [best_anchor_iou(boxes, levels) for levels in (training.levels, proposed)]
    for name, reached in zip(("of the model", "proposed"), ious, strict=True):
        table.add_row(name, *_reached(reached))
    small, median, large = np.quantile(
        np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)), [0.05, 0.5, 0.95]
    )
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{json}: {len(boxes):,} objects at {training.name} have sides of {median:.0f} pixels "
        f"({small:.0f} to {large:.0f} for nine in ten); with their best anchor they have",
        markup=False,
    )
    console.print(table)
    if ious[1].mean() < ious[0].mean() + _LITTLE:
        console.print("the model's anchors fit; these would gain little:")
    print(
        f"'model.rpn.anchors.sizes={[[size] for size in sizes]}' "
        f"'model.rpn.anchors.aspect_ratios={ratios}'".replace(", ", ",")
    )


def _reached(ious: Floats) -> tuple[str, ...]:
    return (f"{ious.mean():.2f}", *(f"{(ious >= least).mean():.1%}" for least in (0.5, 0.7)))
