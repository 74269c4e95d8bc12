"""`mrcnn data split`, `merge` and `subset`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mrcnn_lightning.app.data_commands.app import data_app, failed
from mrcnn_lightning.app.errors import USER_ERRORS
from mrcnn_lightning.data import coco_sets
from mrcnn_lightning.data.coco_sets import Content
from mrcnn_lightning.data.formats.image_set import read_yaml
from mrcnn_lightning.user_error import UserError


@data_app.command()
def split(
    json: Annotated[Path, typer.Argument(help="A COCO-format file.", dir_okay=False)],
    images: Annotated[Path, typer.Option(help="The folder of its images.", file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for a file of each part.", file_okay=False)],
    parts: Annotated[
        str, typer.Option(help="Names and shares, as train=0.7,val=0.2,test=0.1.")
    ] = "train=0.8,val=0.2",
    seed: Annotated[int, typer.Option(min=0, help="Another deals otherwise.")] = 0,
) -> None:
    """Split a set so that each part has its share of every class.

    Near-copies of an image stay in one part. Ids and all keys stay as they are.
    """
    try:
        shares = _shares(parts)
        for name in shares:
            _require_other(out / f"{name}.json", [json])
        content = coco_sets.read_content(json)
        found = coco_sets.split(content, images, shares, seed=seed)
        for name, part in found.items():
            coco_sets.write_content(part, out / f"{name}.json")
    except USER_ERRORS as error:
        raise failed(error) from error
    _show(content, found)
    typer.echo(f"{', '.join(f'{name}.json' for name in found)} are in {out}")
    if {"train", "val"} <= found.keys():
        typer.echo(
            f"python train.py data=custom data.train_images={images} "
            f"data.train_json={out / 'train.json'} data.val_images={images} "
            f"data.val_json={out / 'val.json'}"
        )


@data_app.command()
def merge(
    json: Annotated[list[Path], typer.Argument(help="COCO-format files, two or more.")],
    out: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)],
    images: Annotated[
        list[Path] | None,
        typer.Option(help="The folder of each file's images, where they differ: once a file."),
    ] = None,
    class_map: Annotated[
        Path | None,
        typer.Option(help="A yaml file of other names for classes, as `auto: car`."),
    ] = None,
) -> None:
    """Merge sets into one; classes are matched by their names.

    With --images, names of images become relative to the folder that all the folders are in.
    """
    try:
        if len(set(json)) < 2:
            raise UserError("two different files are needed to merge")
        _require_other(out, json if class_map is None else [*json, class_map])
        contents = [coco_sets.read_content(file) for file in json]
        if images is not None and len(images) != len(json):
            raise UserError(f"--images is given {len(images)} times for {len(json)} files")
        if class_map is not None:
            contents = _renamed(contents, class_map)
        folder = None
        if images is not None:
            folder, contents = coco_sets.relative_to_one(images, contents)
        merged, notes = coco_sets.merge(dict(zip(map(str, json), contents, strict=True)))
        coco_sets.write_content(merged, out)
    except USER_ERRORS as error:
        raise failed(error) from error
    typer.echo(f"{out}: {_counted(merged)}")
    for note in notes:
        typer.echo(f"  {note}")
    if folder is not None:
        typer.echo(f"  names of images are relative to {folder}")


@data_app.command()
def subset(
    json: Annotated[Path, typer.Argument(help="A COCO-format file.", dir_okay=False)],
    out: Annotated[Path, typer.Option(help="The file to write.", dir_okay=False)],
    classes: Annotated[
        str | None, typer.Option(help="Names, as cat,dog: these alone, and images with them.")
    ] = None,
    num_images: Annotated[
        int | None, typer.Option(min=1, help="So many, chosen at random.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another chooses otherwise.")] = 0,
) -> None:
    """Write some of a set: some classes, some images. Ids and all keys stay as they are."""
    try:
        if classes is None and num_images is None:
            raise UserError("say which part: --classes, --num-images or both")
        _require_other(out, [json])
        content = coco_sets.read_content(json)
        if classes is not None:
            content = coco_sets.with_classes(content, _names(classes, content))
        if num_images is not None:
            content = coco_sets.with_some_images(content, num_images, seed=seed)
        if not content["images"]:
            raise UserError(f"{json} has no image with {classes}")
        coco_sets.write_content(content, out)
    except USER_ERRORS as error:
        raise failed(error) from error
    typer.echo(f"{out}: {_counted(content)}")


def _require_other(out: Path, inputs: list[Path]) -> None:
    """Refuse to write over what is read."""
    if out.resolve() in {file.resolve() for file in inputs}:
        raise UserError(f"{out} is a file that is read: give another --out, else it is lost")


def _shares(parts: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for word in parts.split(","):
        name, _, value = (piece.strip() for piece in word.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        is_plain = name.isprintable() and name not in ("", ".", "..") and not {*"/\\"} & {*name}
        if not is_plain or name in shares or not 0 < share < 1:
            raise UserError(
                f"--parts {parts} has {word!r}, which must be a new name, plain enough for a file, "
                "and a share between 0 and 1, as train=0.8"
            )
        shares[name] = share
    if abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"--parts {parts} has shares whose sum is {sum(shares.values()):g}, not 1")
    return shares


def _names(classes: str, content: Content) -> list[str]:
    """Names between commas, of which one may be in a name itself."""
    if any(category["name"] == classes for category in content["categories"]):
        return [classes]
    names = [name.strip() for name in classes.split(",") if name.strip()]
    if not names:
        raise UserError(f"--classes {classes!r} names none: name at least one class, as cat,dog")
    return names


def _renamed(contents: list[Content], file: Path) -> list[Content]:
    names = read_yaml(file)
    if not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise UserError(f"{file} must have a line `old name: new name` for each class to rename")
    known = {each["name"] for content in contents for each in content["categories"]}
    unknown = [str(name) for name in names if name not in known]
    if unknown:
        raise UserError(f"{file} renames {', '.join(unknown)}, of which no file has a class")
    return [coco_sets.with_class_names(content, names) for content in contents]


def _counted(content: Content) -> str:
    return (
        f"{len(content['images'])} images, {len(content['annotations'])} objects, "
        f"{len(content['categories'])} classes"
    )


def _show(content: Content, found: dict[str, Content]) -> None:
    """Each part's share of images and objects, and of the classes those that it lacks."""
    total = coco_sets.kinds_of(content).sum(axis=0)
    table = Table("part", "images", "objects", "classes without an image")
    for name, part in found.items():
        lacking = (coco_sets.kinds_of(part).sum(axis=0) == 0) & (total > 0)
        shares = [len(part[key]) / max(1, len(content[key])) for key in ("images", "annotations")]
        table.add_row(
            name,
            f"{len(part['images'])} ({shares[0]:.1%})",
            f"{len(part['annotations'])} ({shares[1]:.1%})",
            f"{lacking.sum()} of {(total > 0).sum()}",
        )
    Console(highlight=False).print(table)
