"""VIA's format, of the VGG Image Annotator 1 and 2: one json file for all images.

P points of a polygon.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_lightning.data.formats.image_set import (
    ImageSet,
    LabeledImage,
    LabeledObject,
    box_object,
    class_names_of,
    ellipse,
    image_size,
    polygon_object,
    read_text,
)
from mrcnn_lightning.data.formats.outlines import single_polygon
from mrcnn_lightning.user_error import UserError

_WITHOUT_AREA = {"point", "polyline", "line"}
_NAMES_OF_CLASSES = ("class", "label", "name", "category", "type")


def read_via(file: Path, *, images: Path, class_name: str | None = None) -> ImageSet:
    """A project, or annotations as they are exported, of images in a folder.

    Polygons, rectangles, circles and ellipses are read; points and lines, which have no area, are
    left out. A region with the attribute `iscrowd` 1 is a crowd.

    Args:
        file: a json file.
        images: the folder of images, of which VIA does not keep the sizes.
        class_name: of regions without attributes. The class is the attribute called class, label,
            name, category or type, or else the only one.

    Raises:
        UserError: names the file, the image and the region that is wrong.
    """
    text = read_text(file)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} is not a JSON file: {error}") from error
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("filename"), str)
        for entry in entries.values()
    ):
        raise UserError(f"{file} is not VIA's: export the annotations as json")
    found = ImageSet([], [])
    for entry in entries.values():
        height, width = image_size(images / entry["filename"])
        image = LabeledImage(entry["filename"], width, height)
        regions = entry.get("regions") or []
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # of VIA 1
        for number, region in enumerate(regions, start=1):
            place = f"{file}: {image.file_name}, region {number} of {len(regions)}"
            try:
                labeled = _object(region, class_name)
            except KeyError as error:
                raise UserError(f"{place} has no {error.args[0]}: draw it anew") from error
            except (TypeError, ValueError, AttributeError) as error:
                said = str(error) if isinstance(error, UserError) else f"cannot be read: {error}"
                raise UserError(f"{place} {said}") from error
            if labeled is None:
                found.notes["points and lines are left out, which have no area"] += 1
            else:
                image.objects.append(labeled)
        found.images.append(image)
    if not found.images:
        raise UserError(f"{file} has no images")
    found.class_names = class_names_of(found.images)
    return found


def write_via(image_set: ImageSet, file: Path, *, images: Path | None) -> None:
    """Annotations that VIA imports; an object of several parts becomes one polygon.

    Args:
        image_set: classes without objects are not kept.
        file: the json file.
        images: the folder of images; VIA knows each again by its name and its size in bytes.
    """
    entries = {}
    for image in image_set.images:
        path = None if images is None else images / image.file_name
        num_bytes = path.stat().st_size if path is not None and path.exists() else -1
        regions = []
        for labeled in image.objects:
            attributes = {"class": labeled.class_name}
            attributes |= {"iscrowd": "1"} if labeled.is_crowd else {}
            shape = _shape(labeled, image, image_set)
            regions.append({"shape_attributes": shape, "region_attributes": attributes})
        entries[f"{image.file_name}{num_bytes}"] = {
            "filename": image.file_name,
            "size": num_bytes,
            "regions": regions,
            "file_attributes": {},
        }
    unused = set(image_set.class_names) - set(class_names_of(image_set.images))
    if unused:
        image_set.notes["classes without an object are not kept by VIA's format"] += len(unused)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")


def _object(region: dict[str, Any], class_name: str | None) -> LabeledObject | None:
    shape, attributes = region["shape_attributes"], dict(region.get("region_attributes") or {})
    is_crowd = str(attributes.pop("iscrowd", "0")) in ("1", "true", "True")
    if shape["name"] in _WITHOUT_AREA:
        return None
    name = _class_of(attributes, class_name)
    if shape["name"] == "rect":
        x, y, width, height = (float(shape[key]) for key in ("x", "y", "width", "height"))
        return box_object(name, x, y, x + width, y + height, is_crowd=is_crowd)
    if shape["name"] == "polygon":
        xs, ys = shape["all_points_x"], shape["all_points_y"]
        if len(xs) != len(ys):
            raise UserError(f"has {len(xs)} x and {len(ys)} y: draw it anew")
        points = np.array([xs, ys], dtype=np.float64).T
    elif shape["name"] in ("circle", "ellipse"):
        center = np.array([shape["cx"], shape["cy"]], dtype=np.float64)
        radii = [shape["r"]] * 2 if shape["name"] == "circle" else [shape["rx"], shape["ry"]]
        turned = float(shape.get("theta", 0))
        points = ellipse(center, np.array(radii, dtype=np.float64), turned=turned)
    else:
        raise UserError(f"is a {shape['name']}, which is not known here: draw it as a polygon")
    return polygon_object(name, [points], is_crowd=is_crowd)


def _class_of(attributes: dict[str, Any], class_name: str | None) -> str:
    keys = [key for key in _NAMES_OF_CLASSES if key in attributes] or list(attributes)[:2]
    if keys and (len(keys) == 1 or keys[0] in _NAMES_OF_CLASSES):
        value = attributes[keys[0]]
        if isinstance(value, str) and value.strip():
            return value.strip()
    if class_name is None:
        raise UserError("has no attribute that names its class: give one to all with --class-name")
    return class_name


def _shape(labeled: LabeledObject, image: LabeledImage, found: ImageSet) -> dict[str, Any]:
    points = single_polygon(labeled, image.size)
    if points is None:
        x, y, width, height = labeled.box
        return {"name": "rect", "x": x, "y": y, "width": width, "height": height}
    if labeled.shape is not None and (isinstance(labeled.shape, bytes) or len(labeled.shape) > 1):
        found.notes["objects of several parts or run lengths became one polygon"] += 1
    xs, ys = points.T.tolist()
    return {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
