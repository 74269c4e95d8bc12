"""`mrcnn data stats`: mean and deviation of each band, to train with."""

import random
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from mrcnn_lightning.app.data_commands.app import data_app, failed
from mrcnn_lightning.app.errors import USER_ERRORS
from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.band_statistics import band_statistics
from mrcnn_lightning.data.bands import ImageFormat, stored_image
from mrcnn_lightning.user_error import UserError


@data_app.command()
def stats(
    json: Annotated[Path, typer.Argument(help="Annotations in COCO's format.")],
    images: Annotated[Path, typer.Argument(help="The folder that file names start from.")],
    channels: Annotated[
        int | None, typer.Option(help="Of an image; as the first one has if unset.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="uint8, uint16, float32; as the first image's if unset.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many images, drawn at random; all if unset.")
    ] = None,
    cache_dir: Annotated[
        str, typer.Option(help="For packed annotations.")
    ] = "~/.cache/mrcnn_lightning",
) -> None:
    """Measure mean and deviation of each band, and print them as overrides for training."""
    try:
        if not json.is_file():
            raise UserError(f"no such file: {json}")
        annotations = Annotations.load(json, cache_dir=cache_dir)
        paths = [images / annotations.file_name(index) for index in range(len(annotations))]
        if not paths:
            raise UserError(f"{json} has no images")
        image_format = _format(channels, dtype, paths[0])
        if sample is not None and sample < len(paths):
            paths = random.Random(0).sample(paths, sample)
        shown = Console(stderr=True)
        mean, std = band_statistics(
            track(paths, description="images", console=shown, transient=True), image_format
        )
    except USER_ERRORS as error:
        raise failed(error) from error
    print(
        f"data.channels={image_format.channels} data.dtype={image_format.dtype} "
        f"'backbone.pixels.mean={_list(mean)}' 'backbone.pixels.std={_list(std)}'"
    )


def _format(channels: int | None, dtype: Any, first: Path) -> ImageFormat:
    """What all images hold: what is said, the rest as the first file has it."""
    if channels is None or dtype is None:
        stored = stored_image(first)
        channels = stored.channels if channels is None else channels
        dtype = stored.dtype if dtype is None else dtype
    image_format = ImageFormat(channels, dtype)
    image_format.require_known()
    return image_format


def _list(values: list[float]) -> str:
    return f"[{','.join(f'{value:.6g}' for value in values)}]"
