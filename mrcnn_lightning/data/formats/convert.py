"""From one format of annotated images to another."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from xml.etree import ElementTree

from mrcnn_lightning.data.formats.coco import read_coco, write_coco
from mrcnn_lightning.data.formats.cvat import read_cvat, write_cvat
from mrcnn_lightning.data.formats.image_set import ImageSet
from mrcnn_lightning.data.formats.labelme import read_labelme, write_labelme
from mrcnn_lightning.data.formats.png_masks import read_png_masks, write_png_masks
from mrcnn_lightning.data.formats.via import read_via, write_via
from mrcnn_lightning.data.formats.voc import read_voc, write_voc
from mrcnn_lightning.data.formats.yolo import read_yolo, write_yolo
from mrcnn_lightning.user_error import UserError

Format = Literal["coco", "cvat", "labelme", "png", "via", "voc", "yolo"]
Placing = Literal["leave", "link", "copy"]
_WITH_PARTS = ("voc", "yolo")
_IN_FOLDERS = ("labelme", "png", "voc", "yolo")


@dataclass(frozen=True)
class Source:
    """Annotations of a format, and where its images are."""

    path: Path
    format: Format
    images: Path | None = None  # where the format says it, if unset
    part: str | None = None  # of those in a set of VOC's or YOLO's
    class_name: str | None = None  # of objects of VIA's or png files without any


@dataclass(frozen=True)
class Converted:
    """What was written."""

    image_set: ImageSet
    images: Path | None  # the folder that names of images are relative to, if known
    num_placed: int  # images linked or copied


def convert(
    source: Source, out: Path, to: Format, *, part: str | None = None, placing: Placing = "leave"
) -> Converted:
    """Write annotations in another format.

    Args:
        source: what is converted.
        out: a file for coco, cvat and via, a folder for the others; a file that is there is
            replaced.
        to: the format.
        part: of VOC or YOLO, into which the images go.
        placing: whether images are linked or copied to where the format wants them.

    Raises:
        UserError: names the file, and what is wrong.
    """
    _check_target(source, out, to, part=part, placing=placing)
    image_set, images = _read(source)
    if placing != "leave" and images is None:
        raise UserError("give --images, the folder of the images that are to be placed")
    if to in _IN_FOLDERS:
        out.mkdir(parents=True, exist_ok=True)
    wanted = _write(image_set, out, to, part=part, images=images if placing == "leave" else None)
    num_placed = 0
    if placing != "leave" and images is not None and wanted is not None:
        num_placed = _place(image_set, images, wanted, placing)
    image_set.notes = Counter({note: n for note, n in image_set.notes.items() if n})
    return Converted(image_set, wanted if placing != "leave" else images, num_placed)


def detect(path: Path) -> Format:
    """The format of annotations.

    Raises:
        UserError: it is none of those known, or none alone.
    """
    if not path.exists():
        raise UserError(f"there is no {path}")
    if path.is_dir():
        signs: dict[Format, bool] = {
            "yolo": (path / "data.yaml").exists(),
            "voc": (path / "Annotations").is_dir(),
            "png": (path / "masks").is_dir(),
        }
        signs["labelme"] = not any(signs.values()) and _has_shapes(path)
        found = [name for name, is_there in signs.items() if is_there]
        if len(found) == 1:
            return found[0]
        said = f"may be {' or '.join(found)}" if found else "is of no format that is known"
        raise UserError(f"{path} {said}: say which with --from ({', '.join(get_args(Format))})")
    if path.suffix in (".yaml", ".yml"):
        return "yolo"
    if path.suffix == ".xml":
        return _of_xml(path)
    return _of_json(path)


def _of_xml(file: Path) -> Format:
    try:
        tag = next(ElementTree.iterparse(file, events=("start",)))[1]
    except (ElementTree.ParseError, StopIteration) as error:
        raise UserError(f"{file} is no XML file: {error}") from error
    if tag.tag == "annotations":
        return "cvat"
    raise UserError(f"{file} is not CVAT's; of VOC, give the folder that has Annotations/ in it")


def _of_json(file: Path) -> Format:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not a JSON file: {error}") from error
    if isinstance(content, dict) and "images" in content and "categories" in content:
        return "coco"
    if isinstance(content, dict) and "shapes" in content:
        raise UserError(f"{file} is one image of LabelMe's: give the folder that it is in")
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if (
        isinstance(entries, dict)
        and entries
        and all(isinstance(entry, dict) and "regions" in entry for entry in entries.values())
    ):
        return "via"
    raise UserError(f"{file} is neither COCO's nor VIA's: say the format with --from")


def _has_shapes(folder: Path) -> bool:
    for file in folder.rglob("*.json"):
        try:
            content = json.loads(file.read_bytes())
        except ValueError:
            continue
        if isinstance(content, dict) and "shapes" in content:
            return True
    return False


def _check_target(
    source: Source, out: Path, to: Format, *, part: str | None, placing: Placing
) -> None:
    """Refuse what cannot be written before anything is."""
    if part is not None and to not in _WITH_PARTS:
        raise UserError(f"the format {to} has no parts: leave out --to-part {part}")
    if placing != "leave" and to not in _IN_FOLDERS:
        raise UserError(f"the format {to} has no folder for images: leave out --place {placing}")
    if out.exists() and out.resolve() == source.path.resolve():
        raise UserError(f"{out} is what is converted: give another name for the result")
    if to in _IN_FOLDERS:
        if out.is_file():
            raise UserError(f"{out} is a file, {to} wants a folder: give another name")
    elif out.is_dir() or not out.suffix:
        ending = "xml" if to == "cvat" else "json"
        raise UserError(f"{out} must be a file for {to}, as {out}.{ending}")


def _read(source: Source) -> tuple[ImageSet, Path | None]:
    """A set, and the folder that names of images are relative to, if it is known."""
    path, images = source.path, source.images
    if source.part is not None and source.format not in _WITH_PARTS:
        raise UserError(f"the format {source.format} has no parts: leave out --part {source.part}")
    if source.class_name is not None and source.format not in ("via", "png"):
        raise UserError(f"objects of {source.format} have classes: leave out --class-name")
    if not path.exists():
        raise UserError(f"there is no {path}")
    if path.is_dir() and source.format in ("coco", "cvat", "via"):
        raise UserError(f"{path} is a folder: of {source.format}, give the file")
    match source.format:
        case "coco":
            return read_coco(path), images
        case "cvat":
            return read_cvat(path), images
        case "labelme":
            return read_labelme(path, images=images), images or path
        case "png":
            there = images or (path / "images" if (path / "images").is_dir() else None)
            return read_png_masks(path, images=images, class_name=source.class_name), there
        case "via":
            there = images or path.parent
            return read_via(path, images=there, class_name=source.class_name), there
        case "voc":
            return read_voc(path, part=source.part), images or path / "JPEGImages"
        case "yolo":
            if images is not None:
                raise UserError("data.yaml says where YOLO's images are: leave out --images")
            return read_yolo(path, part=source.part)


def _write(
    image_set: ImageSet, out: Path, to: Format, *, part: str | None, images: Path | None
) -> Path | None:
    """Write a set; the folder in which the format wants its images, None if it wants none."""
    match to:
        case "coco":
            write_coco(image_set, out)
        case "cvat":
            write_cvat(image_set, out)
        case "via":
            write_via(image_set, out, images=images)
        case "labelme":
            write_labelme(image_set, out, images=images)
            return out
        case "png":
            write_png_masks(image_set, out)
            return out / "images"
        case "voc":
            return write_voc(image_set, out, part=part)
        case "yolo":
            return write_yolo(image_set, out, part=part or "train")
    return None


def _place(image_set: ImageSet, images: Path, wanted: Path, placing: Placing) -> int:
    """Link or copy images; one that is there already stays."""
    num_placed = 0
    for image in image_set.images:
        source, target = images / image.file_name, wanted / image.file_name
        if not source.exists():
            raise UserError(f"there is no image {source}: correct --images")
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if placing == "copy":
            shutil.copyfile(source, target)
        else:
            target.unlink(missing_ok=True)  # a link that leads nowhere
            target.symlink_to(source.absolute())
        num_placed += 1
    return num_placed
