"""YOLO's format for segmentation: a text file an image, and data.yaml.

P points of a polygon.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mrcnn_lightning.data.formats.image_set import (
    ImageSet,
    LabeledImage,
    LabeledObject,
    Points,
    box_object,
    corners_of,
    image_files,
    image_size,
    polygon_object,
    read_text,
    read_yaml,
    stems,
)
from mrcnn_lightning.data.formats.outlines import single_polygon
from mrcnn_lightning.data.segmentations import clipped
from mrcnn_lightning.user_error import UserError

_PARTS = ("train", "val", "test")
_DECIMALS = 4  # of pixels, in what is read


def read_yolo(source: Path, *, part: str | None = None) -> tuple[ImageSet, Path]:
    """The images of one part of a set, and the folder that they are in.

    Labels lie where Ultralytics looks for them: in the path of the images, with its last folder
    `images` replaced by `labels`. A line of five numbers is a box, a longer one a polygon; an image
    without a file of labels has no objects.

    Args:
        source: data.yaml, or the folder that it is in.
        part: train, val or test; may be left out if data.yaml names only one.

    Raises:
        UserError: names the file and the line that is wrong.
    """
    file = source / "data.yaml" if source.is_dir() else source
    content = _read_yaml(file)
    names = _class_names(content, file)
    folder = _folder_of(content, file, part)
    images = []
    for name in image_files(folder):
        height, width = image_size(folder / name)
        image = LabeledImage(name, width, height)
        labels = _labels_of(folder) / Path(name).with_suffix(".txt")
        if labels.exists():
            lines = enumerate(read_text(labels).splitlines(), start=1)
            image.objects = [
                _object(line, image, names, f"{labels}, line {number}")
                for number, line in lines
                if line.strip()
            ]
        images.append(image)
    if not images:
        raise UserError(f"there are no images in {folder}, which {file} names")
    return ImageSet(names, images), folder


def write_yolo(image_set: ImageSet, out: Path, *, part: str = "train") -> Path:
    """Labels of one part of a set, and data.yaml, to which other parts of it can be added.

    Crowds are left out, as Ultralytics does; an object of several parts becomes one polygon, and a
    box on an image with polygons one of four corners.

    Returns:
        The folder in which the images belong.

    Raises:
        UserError: data.yaml is there with other classes, or YOLO has no such part.
    """
    if part not in _PARTS:
        raise UserError(f"YOLO's parts are {', '.join(_PARTS)}, not {part}")
    file = out / "data.yaml"
    names = dict(enumerate(image_set.class_names))
    content = _read_yaml(file) if file.exists() else {}
    if content and _class_names(content, file) != image_set.class_names:
        raise UserError(f"{file} has other classes: give another folder")
    numbers = {name: number for number, name in names.items()}
    labels = out / "labels" / part
    for stem, image in stems(image_set).items():
        target = labels / f"{stem}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = _lines(image, numbers, image_set.notes)
        target.write_text("".join(lines), encoding="utf-8")
    content |= {"path": str(out.absolute()), part: f"images/{part}", "names": names}
    content.setdefault("train", content[part])  # Ultralytics wants both
    content.setdefault("val", content[part])
    file.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return out / "images" / part


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise UserError(f"there is no {file}, which names YOLO's classes and images")
    content = read_yaml(file)
    if "names" not in content:
        raise UserError(f"{file} has no `names`, the classes of YOLO's format")
    return content


def _class_names(content: dict[str, Any], file: Path) -> list[str]:
    names = content["names"]
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or len({str(name) for name in names}) != len(names):
        raise UserError(f"{file}: `names` must be different classes, numbered from 0 on")
    return [str(name) for name in names]


def _folder_of(content: dict[str, Any], file: Path, part: str | None) -> Path:
    """The folder of a part's images: as data.yaml says, or beside it where it was moved."""
    named = {name: content[name] for name in _PARTS if content.get(name)}
    if part is None and len({str(folder) for folder in named.values()}) > 1:
        raise UserError(f"{file} names {', '.join(named)}: choose with --part {next(iter(named))}")
    part = part or next(iter(named), "train")
    if part not in named:
        raise UserError(f"{file} has no part {part}; it has {', '.join(named) or 'none'}")
    folder = named[part]
    if not isinstance(folder, str) or folder.endswith(".txt"):
        raise UserError(f"{file}: {part} must name one folder of images, not {folder!r}")
    root = Path(str(content.get("path") or ""))
    # Exports are often moved, and name folders from above their own.
    inner = folder.removeprefix("../")
    for candidate in (
        file.parent / root / folder,
        root / folder,
        file.parent / folder,
        file.parent / inner,
    ):
        if candidate.is_dir():
            return Path(os.path.normpath(candidate.absolute()))  # links stay: labels lie beside
    raise UserError(
        f"{file}: {part} names {folder}, which is no folder: correct `path` or `{part}`"
    )


def _labels_of(folder: Path) -> Path:
    parts = list(folder.parts)
    for number in reversed(range(len(parts))):
        if parts[number] == "images":
            parts[number] = "labels"
            return Path(*parts)
    return folder


def _object(line: str, image: LabeledImage, names: list[str], place: str) -> LabeledObject:
    try:
        number, *values = (float(word) for word in line.split())
        name = names[int(number)] if number >= 0 else ""
    except ValueError as error:
        raise UserError(f"{place} is not a class and its coordinates: correct the line") from error
    except IndexError as error:
        raise UserError(
            f"{place} has class {int(number)}, data.yaml has {len(names)} from 0 on: correct one"
        ) from error
    if not name or not number.is_integer() or len(values) not in (4, *range(6, len(values) + 1, 2)):
        raise UserError(
            f"{place} has {len(values)} numbers behind its class, neither a box's 4 nor a "
            "polygon's even number from 6 on: correct the line"
            if name
            else f"{place} has class {number:g}, which must be a whole number from 0 on"
        )
    scale = np.array([image.width, image.height], dtype=np.float64)
    # What was 0.5 is 0.5 again: pycocotools draws 0.49999 a pixel further.
    points = (np.array(values).reshape(-1, 2) * scale).round(_DECIMALS)
    try:
        if len(points) == 2:
            low, high = points[0] - points[1] / 2, points[0] + points[1] / 2
            return box_object(name, *low.tolist(), *high.tolist())
        return polygon_object(name, [points], is_crowd=False)
    except UserError as error:
        raise UserError(f"{place} {error}") from error


def _lines(image: LabeledImage, numbers: dict[str, int], notes: Counter[str]) -> list[str]:
    """A line an object; where one is a polygon, Ultralytics takes all lines of a file for such."""
    kept = [labeled for labeled in image.objects if not labeled.is_crowd]
    num_crowds = len(image.objects) - len(kept)
    notes["crowds are left out, for which YOLO's format has no word"] += num_crowds
    shapes = [single_polygon(labeled, image.size) for labeled in kept]
    boxes = [number for number, points in enumerate(shapes) if points is None]
    if len(boxes) < len(shapes):
        notes["boxes beside polygons became polygons of four corners"] += len(boxes)
        for number in boxes:
            shapes[number] = corners_of(kept[number])
    return [
        _line(labeled, points, image, numbers[labeled.class_name], notes)
        for labeled, points in zip(kept, shapes, strict=True)
    ]


def _line(
    labeled: LabeledObject,
    points: Points | None,
    image: LabeledImage,
    number: int,
    notes: Counter[str],
) -> str:
    scale = np.array([image.width, image.height], dtype=np.float64)
    if points is None:
        x, y, width, height = labeled.box
        corners = np.array([[x, y], [x + width, y + height]]) / scale
        low, high = corners.clip(0, 1)
        values = np.concatenate([(low + high) / 2, high - low]).tolist()
    else:
        if isinstance(labeled.shape, bytes) or len(labeled.shape or []) > 1:
            notes["objects of several parts or run lengths became one polygon"] += 1
        values = (points / scale).ravel().tolist()
        if min(values) < 0 or max(values) > 1:  # which Ultralytics refuses
            values = clipped(values, 0, 1)
    return " ".join([str(number), *(f"{value:.9g}" for value in values)]) + "\n"
