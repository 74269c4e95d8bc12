"""The `mrcnn` command."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import hydra
import typer
from hydra.errors import HydraException
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mrcnn_lightning import run
from mrcnn_lightning.data.download import download_coco as download
from mrcnn_lightning.errors import USER_ERRORS, sentence
from mrcnn_lightning.inference.checkpoint import load_checkpoint
from mrcnn_lightning.inference.predictor import Prediction, Predictor
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.ops.masks import decode_masks
from mrcnn_lightning.ops.results import coco_results
from mrcnn_lightning.summary import render, summarize
from mrcnn_lightning.visualization import draw, save

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
# Everything behind `mrcnn train` is Hydra's, `--help` too.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _fail(message: object) -> typer.Exit:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {message}", markup=False)
    return typer.Exit(1)


@app.command(context_settings=_PASSED_ON)
def train(context: typer.Context) -> None:
    """Train, validate or test: the same as `python train.py`, with the same overrides."""
    # Lightning starts further processes with this command line, so it must name a script.
    sys.argv = [str(Path(run.__file__)), *context.args]
    run.main()


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of this project.")],
    photos: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.", file_okay=False)],
    batch_size: Annotated[int, typer.Option(min=1, help="Images of one size at a time.")] = 4,
    min_score: Annotated[
        float | None,
        typer.Option(help="Less confident ones are not drawn; the model's own if unset."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes a GPU.")] = "auto",
    precision: Annotated[str, typer.Option(help="32, or bf16 for speed.")] = "32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile; pays for many photos.")
    ] = False,
) -> None:
    """Find objects in photos: OUT/predictions.json in COCO's format, and a picture of each."""
    try:
        files = list(_files(photos))
        predictor = Predictor.from_checkpoint(
            checkpoint, device=device, precision=precision, compiled=compiled
        )
    except (*USER_ERRORS, HydraException) as error:
        raise _fail(sentence(error)) from error
    shown_score = predictor.show_score if min_score is None else min_score
    out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    failed: list[Prediction] = []
    names: set[str] = set()
    stream = predictor.stream(files, batch_size=batch_size)
    try:
        for prediction in track(stream, total=len(files), description="predict"):
            if prediction.error is not None:
                failed.append(prediction)
                continue
            name = f"{prediction.path.name}.png"
            if name in names:
                name = f"{prediction.number}_{name}"
            names.add(name)
            save(_overlay(prediction, predictor.class_names, shown_score), out / name)
            assert prediction.detections is not None
            found = coco_results(prediction.detections, predictor.category_ids)
            results += [result | {"file_name": str(prediction.path)} for result in found]
    finally:  # what is done is kept when the rest is interrupted
        results.sort(key=lambda result: result["image_id"])
        (out / "predictions.json").write_text(json.dumps(results))
    print(f"{len(files) - len(failed)} images done, {len(results)} objects: {out}")
    if failed:
        errors = "\n".join(f"  {prediction.error}" for prediction in failed)
        raise _fail(f"{len(failed)} of {len(files)} files could not be read:\n{errors}")


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
        summary = summarize(*_model(model, classes))
    except (*USER_ERRORS, HydraException) as error:
        raise _fail(sentence(error)) from error
    Console(highlight=False).print(*render(summary), sep="\n")


@app.command()
def download_coco(
    folder: Annotated[Path, typer.Argument(help="Where COCO 2017 is to lie, e.g. data/coco.")],
) -> None:
    """Download COCO 2017 (training and validation images and annotations, 20 GB)."""
    try:
        download(folder)
    except ValueError as error:
        raise _fail(error) from error


def _model(words: list[str], num_classes: int) -> tuple[Detector, dict[str, Any]]:
    """The model that words name, and its specification, both as from `load_checkpoint`."""
    file = next((word for word in words if _is_file(word)), None)
    if file is not None:
        if len(words) > 1:
            raise ValueError(f"{file} is a checkpoint, which says all: give it alone")
        return load_checkpoint(file)
    experiments = sorted(path.stem for path in (run.CONF / "experiment").glob("*.yaml"))
    overrides = []
    for word in words:
        is_override = "=" in word or word.startswith("~")
        if not is_override and word not in experiments:
            raise ValueError(
                f"{word} is no file, no experiment ({', '.join(experiments)}) and no override "
                "(KEY=VALUE)"
            )
        overrides.append(word if is_override else f"experiment={word}")
    with hydra.initialize_config_dir(str(run.CONF), version_base="1.3"):
        cfg = hydra.compose("train", [*overrides, "run_dir=unused", "backbone.weights=null"])
    parts = {"model": cfg.model, "resize": cfg.data.resize, "canvas": cfg.data.canvas}
    spec = {name: OmegaConf.to_container(part, resolve=True) for name, part in parts.items()}
    built = {name: hydra.utils.instantiate(part, _convert_="all") for name, part in spec.items()}
    model = built.pop("model")(class_names=[str(label) for label in range(1, num_classes + 1)])
    return model, spec | built


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # an override may be longer than a file's name
        return False


def _files(photos: list[Path]) -> Iterator[Path]:
    for photo in photos:
        if photo.is_dir():
            yield from sorted(file for file in photo.iterdir() if file.is_file())
        elif photo.exists():
            yield photo
        else:
            raise ValueError(f"no such file or folder: {photo}")


def _overlay(prediction: Prediction, class_names: list[str], min_score: float) -> Tensor:
    assert prediction.image is not None and prediction.detections is not None
    found = prediction.detections
    shown = found.scores >= min_score
    masks = None
    if found.rles is not None:
        wanted = [rle for rle, is_shown in zip(found.rles, shown.tolist(), strict=True) if is_shown]
        masks = decode_masks(wanted, found.size)
    return draw(
        prediction.image,
        boxes=found.boxes[shown],
        labels=found.labels[shown],
        class_names=class_names,
        scores=found.scores[shown],
        masks=masks,
    )
