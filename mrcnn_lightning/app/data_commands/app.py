"""`mrcnn data`: its commands stand in the files beside this one."""

import typer
from rich.console import Console

from mrcnn_lightning.app.errors import sentence

data_app = typer.Typer(no_args_is_help=True, help="Look at, mend and convert annotated images.")


def failed(error: BaseException) -> typer.Exit:
    """Say in one sentence what went wrong; what is to be raised then."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"error: {sentence(error)}", markup=False)
    return typer.Exit(1)
