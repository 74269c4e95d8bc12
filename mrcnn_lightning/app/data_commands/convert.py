"""`mrcnn data convert`."""

from pathlib import Path
from typing import Annotated

import typer

from mrcnn_lightning.app.data_commands.app import data_app, failed
from mrcnn_lightning.app.errors import USER_ERRORS
from mrcnn_lightning.data.formats.convert import Format, Placing, Source, convert, detect


@data_app.command(name="convert")
def convert_command(
    source: Annotated[
        Path,
        typer.Argument(help="A json (COCO, VIA), xml (CVAT) or data.yaml; or a folder (others)."),
    ],
    out: Annotated[Path, typer.Argument(help="A file (COCO, VIA, CVAT), or a folder (others).")],
    to: Annotated[Format, typer.Option(help="The format to write.")],
    from_: Annotated[
        Format | None, typer.Option("--from", help="The format of SOURCE; detected if unset.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="The folder of images, where SOURCE does not say it.", file_okay=False),
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Of YOLO (train, val, test) or VOC (a list), to read.")
    ] = None,
    to_part: Annotated[
        str | None, typer.Option(help="Of YOLO or VOC, to write; YOLO's is train if unset.")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option(help="Of objects of VIA or png masks without a class.")
    ] = None,
    place: Annotated[
        Placing,
        typer.Option(
            help="Link or copy images to where YOLO, VOC, LabelMe or png masks look for them."
        ),
    ] = "leave",
) -> None:
    """Convert annotated images: COCO, CVAT, LabelMe, png masks, VIA, PASCAL VOC and YOLO.

    What a format cannot hold is said in numbers. Images stay where they are unless --place says so.
    """
    try:
        known = from_ or detect(source)
        given = Source(source, known, images=images, part=part, class_name=class_name)
        done = convert(given, out, to, part=to_part, placing=place)
    except USER_ERRORS as error:
        raise failed(error) from error
    found = done.image_set
    num_objects = sum(len(image.objects) for image in found.images)
    typer.echo(
        f"{source} ({known}) -> {out} ({to}): {len(found.images)} images, {num_objects} objects, "
        f"{len(found.class_names)} classes"
    )
    for note, count in found.notes.items():
        typer.echo(f"  {count} {note}")
    if done.num_placed:
        typer.echo(f"  {done.num_placed} images placed in {done.images}")
    elif done.images is not None:
        typer.echo(f"  names of images are relative to {done.images}")
