"""Tables for the screen and the log."""

import logging

import rich
from rich.console import Console
from rich.table import Table


def show(table: Table) -> None:
    """Print a table on the screen, above a progress bar if there is one, and in the run's log."""
    rich.get_console().print(table)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            Console(file=handler.stream, width=100).print(table)
