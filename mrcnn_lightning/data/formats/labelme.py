"""LabelMe's format: a json file an image, beside it.

P points of a polygon; h and w of a mask's crop.
"""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mrcnn_lightning.data.formats.image_set import (
    ImageSet,
    LabeledImage,
    LabeledObject,
    Mask,
    box_object,
    class_names_of,
    corners_of,
    crop_of,
    ellipse,
    mask_object,
    polygon_object,
    read_text,
    read_values,
    stems,
)
from mrcnn_lightning.user_error import UserError

_WITHOUT_AREA = {"point", "line", "linestrip", "points"}


def read_labelme(folder: Path, *, images: Path | None = None) -> ImageSet:
    """The json files in a folder and in those in it; shapes with one `group_id` are one object.

    Polygons, rectangles, circles and masks are read; points and lines are left out, which have no
    area. A shape with the flag `iscrowd` is a crowd. Classes are in the order of `labels.txt`, if
    there is one, and else of their names.

    Args:
        folder: as said.
        images: the folder of images, if it is another.

    Raises:
        UserError: names the file and the shape that is wrong.
    """
    found = ImageSet([], [])
    for file in sorted(folder.rglob("*.json")):
        content = _read_json(file)
        if "shapes" in content:
            found.images.append(_image(content, file, (folder, images or folder), found))
    if not found.images:
        raise UserError(f"{folder} has no json files of LabelMe's (with `shapes`)")
    listed = folder / "labels.txt"
    names = read_text(listed).split("\n") if listed.exists() else []
    present = class_names_of(found.images)
    names = [name for name in names if name.strip() and name not in ("__ignore__", "_background_")]
    found.class_names = [*names, *(name for name in present if name not in names)]
    return found


def write_labelme(image_set: ImageSet, out: Path, *, images: Path | None) -> None:
    """A json file an image, and `labels.txt`.

    Args:
        image_set: polygons stay polygons, run lengths become shapes of the kind `mask`.
        out: the folder for the files.
        images: the folder of the images, which each file names; if unset, they belong in `out`.
    """
    for stem, image in stems(image_set).items():
        target = out / f"{stem}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        place = (images or out) / image.file_name
        shapes = []
        for group, labeled in enumerate(image.objects, start=1):
            shapes += _shapes(labeled, image, group)
        content: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(os.path.relpath(place, target.parent)).as_posix(),
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        target.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    lines = "".join(f"{name}\n" for name in image_set.class_names)
    (out / "labels.txt").write_text(lines, encoding="utf-8")


def _read_json(file: Path) -> dict[str, Any]:
    text = read_text(file)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} is not a JSON file: {error}") from error
    return content if isinstance(content, dict) else {}


def _image(
    content: dict[str, Any], file: Path, folders: tuple[Path, Path], found: ImageSet
) -> LabeledImage:
    width, height = content.get("imageWidth"), content.get("imageHeight")
    name = content.get("imagePath")
    if not isinstance(width, int) or not isinstance(height, int):
        raise UserError(f"{file} has no imageWidth and imageHeight: save it with LabelMe anew")
    if not isinstance(name, str) or not name:
        raise UserError(f"{file} has no imagePath, the name of its image")
    image = LabeledImage(_file_name(name, file, *folders), width, height)
    groups: dict[Any, list[LabeledObject]] = {}
    if not isinstance(content["shapes"], list):
        raise UserError(f"{file}: its shapes are no list")
    for number, shape in enumerate(content["shapes"], start=1):
        place = f"{file}: shape {number} of {len(content['shapes'])}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise UserError(f"{place} has no label")
        if shape.get("shape_type") in _WITHOUT_AREA:
            found.notes["points and lines are left out, which have no area"] += 1
            continue
        try:
            labeled = _object(shape, image)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            said = str(error) if isinstance(error, UserError) else f"cannot be read: {error}"
            raise UserError(f"{place} {said}") from error
        if labeled is None:
            found.notes["masks without a pixel are left out"] += 1
            continue
        group = shape.get("group_id")
        key = number if group is None else (labeled.class_name, str(group))
        groups.setdefault(key, []).append(labeled)
    image.objects = [_merged(parts, image.size) for parts in groups.values()]
    return image


def _file_name(name: str, file: Path, folder: Path, images: Path) -> str:
    """An image's name from the folder of images, where a json file has it from itself."""
    # Windows' separators stand where it was made there.
    path = os.path.normpath(file.parent / name.replace("\\", "/"))
    inside = os.path.relpath(path, images)
    # Images that were moved lie in their folder as the json files do in theirs.
    return Path(os.path.relpath(path, folder) if inside.startswith("..") else inside).as_posix()


def _object(shape: dict[str, Any], image: LabeledImage) -> LabeledObject | None:
    name, kind = shape["label"], shape.get("shape_type") or "polygon"
    is_crowd = bool((shape.get("flags") or {}).get("iscrowd", False))
    points = np.array(shape["points"], dtype=np.float64).reshape(-1, 2)
    if kind == "polygon":
        return polygon_object(name, [points], is_crowd=is_crowd)
    if len(points) != 2:
        raise UserError(f"is a {kind} of {len(points)} points, it must have 2: draw it anew")
    if kind == "circle":
        radius = np.full(2, np.hypot(*(points[1] - points[0])))
        return polygon_object(name, [ellipse(points[0], radius)], is_crowd=is_crowd)
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    if kind == "rectangle":
        return box_object(name, x1, y1, x2, y2, is_crowd=is_crowd)
    if kind == "mask":
        return mask_object(name, _pasted(shape["mask"], (x1, y1), image), is_crowd=is_crowd)
    raise UserError(f"is a {kind}, which is not known here: draw it as a polygon")


def _pasted(text: str, corner: tuple[float, float], image: LabeledImage) -> Mask:
    """The mask (H, W) of which a png file in base64 is the crop (h, w)."""
    crop = read_values(io.BytesIO(base64.b64decode(text)), "has a mask that") != 0
    x, y = round(corner[0]), round(corner[1])
    canvas = np.zeros(image.size, dtype=np.uint8)
    inside = canvas[y : y + crop.shape[0], x : x + crop.shape[1]] if min(x, y) >= 0 else crop[:0]
    if inside.shape != crop.shape:
        raise UserError("has a mask that reaches out of its image: draw it anew")
    inside[:] = crop
    return canvas


def _merged(parts: list[LabeledObject], size: tuple[int, int]) -> LabeledObject:
    """Shapes of one group as one object."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(part.shape is not None for part in parts):  # a box beside them has an area of its own
        parts = [
            polygon_object(part.class_name, [corners_of(part)], is_crowd=part.is_crowd)
            if part.shape is None
            else part
            for part in parts
        ]
    if all(isinstance(part.shape, list) for part in parts):
        polygons = [
            polygon for part in parts if isinstance(part.shape, list) for polygon in part.shape
        ]
        points = [np.array(polygon).reshape(-1, 2) for polygon in polygons]
        return polygon_object(first.class_name, points, is_crowd=first.is_crowd)
    masks = [mask for part in parts if (mask := part.mask(size)) is not None]
    if masks:
        union = np.any(masks, axis=0)
        merged = mask_object(first.class_name, union, is_crowd=first.is_crowd)
        if merged is not None:
            return merged
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in (part.box for part in parts)])
    (x1, y1), (x2, y2) = corners[:, :2].min(axis=0).tolist(), corners[:, 2:].max(axis=0).tolist()
    return LabeledObject(first.class_name, (x1, y1, x2 - x1, y2 - y1), None, first.is_crowd)


def _shapes(labeled: LabeledObject, image: LabeledImage, group: int) -> list[dict[str, Any]]:
    shape: dict[str, Any] = {
        "label": labeled.class_name,
        "group_id": None,
        "description": "",
        "flags": {"iscrowd": True} if labeled.is_crowd else {},
        "mask": None,
    }
    x, y, width, height = labeled.box
    corners = [[x, y], [x + width, y + height]]
    if labeled.shape is None:
        return [shape | {"shape_type": "rectangle", "points": corners}]
    if isinstance(labeled.shape, bytes):
        return [shape | {"shape_type": "mask", **_crop(labeled, image)}]
    many = {"group_id": group} if len(labeled.shape) > 1 else {}
    return [
        shape | many | {"shape_type": "polygon", "points": np.reshape(polygon, (-1, 2)).tolist()}
        for polygon in labeled.shape
    ]


def _crop(labeled: LabeledObject, image: LabeledImage) -> dict[str, Any]:
    """The corner pixels of a mask, and what is between as a png file in base64."""
    mask = labeled.mask(image.size)
    assert mask is not None
    top, left, crop = crop_of(mask)
    bottom, right = top + crop.shape[0] - 1, left + crop.shape[1] - 1
    file = io.BytesIO()
    Image.fromarray(crop).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return {"points": [[left, top], [right, bottom]], "mask": text}
