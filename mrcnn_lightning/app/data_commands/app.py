"""`mrcnn data`: its commands stand in the files beside this one."""

import typer

data_app = typer.Typer(no_args_is_help=True, help="Look at, mend and convert annotated images.")
