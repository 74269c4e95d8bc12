"""`mrcnn data check`: what is wrong with a data set, and a repaired copy of its file."""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mrcnn_lightning.app.data_commands.app import data_app, failed
from mrcnn_lightning.app.data_commands.training_size import training_size
from mrcnn_lightning.app.errors import USER_ERRORS
from mrcnn_lightning.data.checking.check import Checked, check, compare, find_near_copies
from mrcnn_lightning.data.checking.faults import SEVERITIES, Fault
from mrcnn_lightning.data.checking.repair import Repaired, repair
from mrcnn_lightning.user_error import UserError

_errors = Console(stderr=True, soft_wrap=True, highlight=False)
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@data_app.command(name="check")
def check_command(
    json: Annotated[Path, typer.Argument(help="Annotations in COCO's format.")],
    images: Annotated[Path, typer.Argument(help="The folder that file names start from.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="Write a repaired copy of JSON.")
    ] = None,
    against: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="JSON2 IMAGES2", help="Another split, for images that are in both."),
    ] = None,
) -> None:
    """Find what is wrong with a data set, and say what to do.

    The exit status is 1 if there are errors: what fails a training, or teaches something wrong.
    With --fix, errors that are left in the copy.
    """
    try:
        require_files(json, images)
        size, repaired = training_size(), None
        checked = check(json, images, size=size)
        other = None
        if against:
            require_files(*against)
            other = check(*against)
            compare(checked, other)
        is_compared = find_near_copies(checked, other)
        if fix is not None:
            repaired = repair(json, images, fix, checked=checked, size=size)
    except USER_ERRORS as error:
        raise failed(error) from error
    if not is_compared:
        _errors.print("near-copies are not looked for among so many images", style="yellow")
    if as_json:
        print(json_format.dumps(_as_json(json, checked, repaired), indent=1))
    else:
        _print(json, checked, fix, repaired)
    last = repaired.checked if repaired is not None else checked
    if any(fault.severity == "error" for fault in last.found()):
        raise typer.Exit(1)


def require_files(json: Path, images: Path) -> None:
    """Refuse a file or a folder that is not there."""
    if not json.is_file():
        raise UserError(f"{json} is no file: give the annotations in COCO's format")
    if not images.is_dir():
        raise UserError(f"{images} is no folder: give the one that file names start from")


def _as_json(json: Path, checked: Checked, repaired: Repaired | None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "file": str(json),
        **checked.numbers(),
        "faults": [asdict(fault) for fault in checked.found()],
    }
    if repaired is not None:
        content["changes"] = dict(repaired.changes)
        content["remaining"] = [asdict(fault) for fault in repaired.checked.found()]
    return content


def _print(json: Path, checked: Checked, fix: Path | None, repaired: Repaired | None) -> None:
    console = Console(highlight=False, soft_wrap=True)
    numbers = ", ".join(f"{number:,} {what}" for what, number in checked.numbers().items())
    console.print(f"{json}: {numbers}" if numbers else f"{json}", markup=False)
    _print_faults(console, checked.found())
    if repaired is None:
        return
    console.print(f"\n{fix} is a repaired copy", markup=False)
    for change, count in repaired.changes.items():
        console.print(f"  {change}: {count:,}", markup=False)
    if not repaired.changes:
        console.print("  nothing had to be changed")
    console.print("what is left in it:")
    _print_faults(console, repaired.checked.found())


def _print_faults(console: Console, faults: list[Fault]) -> None:
    for fault in faults:
        console.print(f"{fault.severity:8}", style=_STYLES[fault.severity], end="")
        console.print(fault.sentence(), markup=False)
    counts = {each: sum(f.severity == each for f in faults) for each in SEVERITIES}
    summary = ", ".join(f"{count} kinds of {each}" for each, count in counts.items() if count)
    console.print(summary or "nothing is wrong")
