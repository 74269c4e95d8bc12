"""`mrcnn data report`: a data set as one page to look at."""

from pathlib import Path
from typing import Annotated

import typer

from mrcnn_lightning.app.data_commands.app import data_app, failed
from mrcnn_lightning.app.data_commands.check import require_files
from mrcnn_lightning.app.data_commands.training_size import training_size
from mrcnn_lightning.app.errors import USER_ERRORS
from mrcnn_lightning.data.checking.check import check, find_near_copies
from mrcnn_lightning.inference.set_page import set_page
from mrcnn_lightning.user_error import UserError


@data_app.command()
def report(
    json: Annotated[Path, typer.Argument(help="Annotations in COCO's format.")],
    images: Annotated[Path, typer.Argument(help="The folder that file names start from.")],
    out: Annotated[Path, typer.Option(help="The page, such as report.html.", dir_okay=False)],
) -> None:
    """Write a page about a data set: its classes, sizes, faults, and drawn samples."""
    try:
        require_files(json, images)
        size = training_size()
        checked = check(json, images, size=size)
        if checked.listed is None:
            raise UserError(checked.found()[0].sentence())
        find_near_copies(checked)
        page = set_page(json, checked, size)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except USER_ERRORS as error:
        raise failed(error) from error
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB): open it in a browser")
