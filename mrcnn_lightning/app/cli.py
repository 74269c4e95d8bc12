"""The `mrcnn` command."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import hydra
import torch
import typer
from hydra.errors import HydraException
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track

from mrcnn_lightning import __version__
from mrcnn_lightning.app import run
from mrcnn_lightning.app.command_line import CONF
from mrcnn_lightning.app.data_commands.app import data_app
from mrcnn_lightning.app.errors import USER_ERRORS, sentence
from mrcnn_lightning.app.replay import replay_arguments
from mrcnn_lightning.app.runs import find_runs, print_diff, print_runs, read_run
from mrcnn_lightning.app.summary import render, summarize
from mrcnn_lightning.app.sweeps.wandb_sweep import wandb_sweep
from mrcnn_lightning.app.values import check_values
from mrcnn_lightning.checkpoint import Description, Rebuilt, load_checkpoint
from mrcnn_lightning.data.download import download_coco as download
from mrcnn_lightning.inference.findings import Findings, find_photos, make_folder
from mrcnn_lightning.inference.predictor import Predictor
from mrcnn_lightning.user_error import UserError, built

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(data_app, name="data")
# Everything behind `mrcnn train` is Hydra's, `--help` too.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _fail(message: object, status: int = 1) -> typer.Exit:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {message}", markup=False)
    return typer.Exit(status)


def _run(arguments: Sequence[str]) -> None:
    """Run as `train.py` would: Lightning starts further processes with this command line."""
    sys.argv = [str(Path(run.__file__)), *arguments]
    sys.modules["__main__"].__spec__ = None  # of `python -m mrcnn_lightning`, which names no script
    run.main()


@app.command(context_settings=_PASSED_ON)
def train(context: typer.Context) -> None:
    """Train, validate or test: the same as `python train.py`, with the same overrides."""
    _run(context.args)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mrcnn_lightning {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and end."),
    ] = False,
) -> None:
    """Mask R-CNN and Faster R-CNN: train, predict, look at models and runs."""


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of this project.")],
    photos: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.", file_okay=False)],
    recursive: Annotated[bool, typer.Option(help="Search the folders in folders too.")] = False,
    pictures: Annotated[bool, typer.Option(help="Draw what was found.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one size at a time.")] = 4,
    min_score: Annotated[
        float | None,
        typer.Option(help="Less confident ones are not drawn; the model's own if unset."),
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="Shown of images that are not RGB: 4,3,2, or 1 for grey."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU.")] = "auto",
    precision: Annotated[str, typer.Option(help="32, or bf16 for speed.")] = "32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile; pays for many photos.")
    ] = False,
) -> None:
    """Find objects in photos: OUT/predictions.json in COCO's format, and a picture of each."""
    try:
        if min_score is not None and not 0 <= min_score <= 1:
            raise UserError(f"--min-score {min_score} is not between 0 and 1")
        shown = _bands(bands)
        files, num_skipped = find_photos(photos, recursive=recursive)
        make_folder(out, files)
        predictor = Predictor.from_checkpoint(
            checkpoint, device=device, precision=precision, compiled=compiled
        )
    except (*USER_ERRORS, HydraException) as error:
        raise _fail(sentence(error)) from error
    if num_skipped:
        print(f"{num_skipped} files in folders are no images by their names: not looked at")
    found = Findings(
        predictor, files, out=out, min_score=min_score, has_pictures=pictures, bands=shown
    )
    stream = predictor.stream(files, batch_size=batch_size)
    try:
        for prediction in track(stream, total=len(files), description="predict"):
            found.add(prediction)
    except KeyboardInterrupt:
        raise _fail(f"interrupted: {found.write()}", status=130) from None
    except OSError as error:
        raise _fail(f"{error}: {found.write()}") from error
    except torch.OutOfMemoryError as error:
        raise _fail(f"out of memory, give a lower --batch-size: {found.write()}") from error
    print(found.write())
    if found.errors:
        errors = "\n".join(f"  {error}" for error in found.errors)
        raise _fail(f"{len(found.errors)} of {len(files)} files could not be read:\n{errors}")


@app.command()
def info(
    model: Annotated[
        list[str],
        typer.Argument(help="A checkpoint, an experiment's name, or overrides as for training."),
    ],
    classes: Annotated[int, typer.Option(min=1, help="How many; a checkpoint knows its own.")] = 80,
) -> None:
    """Show a model's parts, parameters, GFLOPs, input, anchors and classes."""
    try:
        summary = summarize(_model(model, classes))
    except (*USER_ERRORS, HydraException) as error:
        raise _fail(sentence(error)) from error
    Console(highlight=False).print(*render(summary), sep="\n")


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="The replay.json of a run that diverged.")],
) -> None:
    """Run the step again in which a training diverged, and name the module where it began."""
    try:
        arguments = replay_arguments(file)
    except UserError as error:
        raise _fail(error) from error
    _run(arguments)


@app.command()
def runs(
    folder: Annotated[
        str, typer.Argument(help="With runs in it, at any depth; or the word diff.")
    ] = "runs",
    both: Annotated[
        list[Path] | None, typer.Argument(metavar="[A B]", help="After diff: two runs' folders.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="A column; `ap` is best first.")] = None,
    csv: Annotated[Path | None, typer.Option(help="A file for the whole table.")] = None,
) -> None:
    """Show runs: how each ended, its AP, its time, and in what their configurations differ.

    `mrcnn runs diff A B` shows in what two runs differ.
    """
    try:
        if folder != "diff":
            if both:
                raise UserError(f"one folder is enough: {folder}")
            print_runs(folder, find_runs(folder), sort=sort, file=csv)
        elif both is None or len(both) != 2:
            raise UserError("mrcnn runs diff takes two folders of runs: mrcnn runs diff A B")
        else:
            print_diff(*map(read_run, both))
    except USER_ERRORS as error:
        raise _fail(sentence(error)) from error


@app.command()
def sweep_config(
    overrides: Annotated[
        list[str], typer.Argument(help="As for training, with hparams_search=NAME or ranges.")
    ],
) -> None:
    """Print a search as the yaml that `wandb sweep` takes."""
    try:
        print(wandb_sweep(overrides), end="")
    except (*USER_ERRORS, HydraException) as error:
        raise _fail(sentence(error)) from error


@app.command()
def download_coco(
    folder: Annotated[Path, typer.Argument(help="Where COCO 2017 is to lie, e.g. data/coco.")],
) -> None:
    """Download COCO 2017 (training and validation images and annotations, 20 GB)."""
    try:
        download(folder)
    except UserError as error:
        raise _fail(error) from error


def _bands(words: str | None) -> list[int] | None:
    try:
        return None if words is None else [int(word) for word in words.split(",")]
    except ValueError as error:
        raise UserError(f"--bands {words} are no whole numbers, such as 4,3,2") from error


def _model(words: list[str], num_classes: int) -> Rebuilt:
    """The model that words name, as from `load_checkpoint`; a configuration names no classes."""
    file = next((word for word in words if _is_file(word)), None)
    if file is not None:
        if len(words) > 1:
            raise UserError(f"{file} is a checkpoint, which says all: give it alone")
        return load_checkpoint(file)
    experiments = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
    overrides = []
    for word in words:
        is_override = "=" in word or word.startswith("~")
        if not is_override and word not in experiments:
            raise UserError(
                f"{word} is no file, no experiment ({', '.join(experiments)}) and no override "
                "(KEY=VALUE)"
            )
        overrides.append(word if is_override else f"experiment={word}")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [*overrides, "run_dir=unused"])
    check_values(cfg)
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    parts = {"model": resolved["model"]}
    parts |= {name: resolved["data"][name] for name in ("resize", "canvas")}
    model, resize, canvas = (
        hydra.utils.instantiate(part, _convert_="all") for part in parts.values()
    )
    description = Description(
        **parts,
        class_names=[],
        category_ids=[],
        show_score=resolved["show_score"],
        dtype=resolved["data"]["dtype"],
    )
    names = [str(label) for label in range(1, num_classes + 1)]
    return Rebuilt(built(model, "model", class_names=names), description, resize, canvas)


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # an override may be longer than a file's name
        return False
