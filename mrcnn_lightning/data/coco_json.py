"""COCO-format files: read, checked and packed into tensors.

N images, O objects of all images, Q polygons of all objects, T points of all polygons.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask
import torch
from torch import Tensor

# What one object's segmentation is packed as: polygons (P, 2), or compressed run lengths.
Shape = list[npt.NDArray[np.float32]] | bytes


def pack_coco_json(file: str | Path) -> dict[str, Any]:
    """A COCO-format file as a dictionary of tensors, strings and lists.

    Objects without an area are left out, and so are those whose polygons all have fewer than three
    points (as Detectron2 does). Category ids become labels 1..K in the order of the ids.

    Args:
        file: with `images` and `categories`; without `annotations` no image has objects.

    Returns:
        `class_names` and `category_ids` of the labels, `has_masks` (whether each object but crowds
        has a segmentation), and tensors in the order of the file: `image_ids` (N,), `image_sizes`
        (N, 2) height and width, `names` bytes, `name_ends` (N,), `object_ends` (N,), `boxes`
        (O, 4) float32 x1, y1, x2, y2, `labels` (O,), `crowd` (O,), `rles` bytes, `rle_ends` (O,),
        `polygon_ends` (O,), `point_ends` (Q,), `points` (T, 2) float32.

    Raises:
        ValueError: names the file, and what is wrong with it.
    """
    content = _read(Path(file))
    labels = _labels(content["categories"], file)
    numbers = _image_numbers(content["images"], file)
    annotations = content.get("annotations", [])
    _check_references(annotations, numbers, labels, file)

    objects: list[list[tuple[Any, Shape | None]]] = [[] for _ in numbers]
    for annotation in annotations:
        number = numbers[annotation["image_id"]]
        image = content["images"][number]
        x, y, width, height = _box(annotation, file)
        shape = _shape(annotation, (image["height"], image["width"]), file)
        if width > 0 and height > 0 and shape != []:
            box = (x, y, x + width, y + height)
            label = labels[annotation["category_id"]]
            objects[number].append(((box, label, bool(annotation.get("iscrowd", 0))), shape))

    flat = [entry for image in objects for entry in image]
    boxes, classes, crowd = zip(*(facts for facts, _ in flat), strict=True) if flat else ([],) * 3
    names = [str(image["file_name"]).encode() for image in content["images"]]
    categories = sorted(content["categories"], key=lambda category: category["id"])
    return {
        "class_names": [category["name"] for category in categories],
        "category_ids": [category["id"] for category in categories],
        "has_masks": all(shape is not None or facts[2] for facts, shape in flat),
        "image_ids": torch.tensor(list(numbers), dtype=torch.int64),
        "image_sizes": torch.tensor(
            [(image["height"], image["width"]) for image in content["images"]], dtype=torch.int64
        ).view(-1, 2),
        "names": _bytes(names),
        "name_ends": _ends(names),
        "object_ends": _ends(objects),
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(classes, dtype=torch.int64),
        "crowd": torch.tensor(crowd, dtype=torch.bool),
        **_pack_shapes([shape for _, shape in flat]),
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not a JSON file: {error}") from error
    for key in ("images", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{file} is no COCO-format file: it has no list of {key}")
        if not content[key]:
            raise ValueError(f"{file} has no {key}")
    return content


def _labels(categories: list[dict[str, Any]], file: str | Path) -> dict[int, int]:
    """Labels 1..K by category id."""
    _require_keys(categories, {"id": int, "name": str}, "category", file)
    for key in ("id", "name"):
        values = [category[key] for category in categories]
        if len(set(values)) < len(values):
            twice = next(value for value in values if values.count(value) > 1)
            raise ValueError(f"{file} has two categories with the {key} {twice}")
    ids = sorted(category["id"] for category in categories)
    return {category: label for label, category in enumerate(ids, start=1)}


def _image_numbers(images: list[dict[str, Any]], file: str | Path) -> dict[int, int]:
    """The place of each image in the file by its id."""
    keys = {"id": int, "file_name": str, "height": int, "width": int}
    _require_keys(images, keys, "image", file)
    numbers = {image["id"]: number for number, image in enumerate(images)}
    if len(numbers) < len(images):
        raise ValueError(f"{file} has {len(images) - len(numbers)} images with ids of other images")
    return numbers


def _require_keys(
    entries: list[dict[str, Any]], keys: dict[str, type], what: str, file: str | Path
) -> None:
    for number, entry in enumerate(entries, start=1):
        for key, kind in keys.items():
            value = entry.get(key)
            if not isinstance(value, kind):
                raise ValueError(
                    f"{file}: {what} {number} of {len(entries)} has {key}={value!r}, which must be "
                    f"{'a whole number' if kind is int else 'text'}"
                )


def _check_references(
    annotations: list[dict[str, Any]],
    numbers: dict[int, int],
    labels: dict[int, int],
    file: str | Path,
) -> None:
    for key, known, what in (
        ("image_id", numbers, "an image"),
        ("category_id", labels, "a category"),
    ):
        unknown = [entry for entry in annotations if entry.get(key) not in known]
        if unknown:
            first = ", ".join(
                f"annotation {entry.get('id')} ({key} {entry.get(key)})" for entry in unknown[:3]
            )
            raise ValueError(
                f"{file}: {len(unknown)} annotations name {what} that the file does not list: "
                f"{first}{', ...' if len(unknown) > 3 else ''}"
            )


def _box(annotation: dict[str, Any], file: str | Path) -> Sequence[float]:
    box = annotation.get("bbox")
    if not (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, (int, float)) and math.isfinite(value) for value in box)
    ):
        raise ValueError(
            f"{file}: annotation {annotation.get('id')} has bbox={box}, which must be four numbers "
            "[x, y, width, height]"
        )
    return box


def _shape(annotation: dict[str, Any], size: tuple[int, int], file: str | Path) -> Shape | None:
    """The segmentation, None if there is none, an empty list if nothing of it is an area."""
    segmentation = annotation.get("segmentation")
    where = f"{file}: the segmentation of annotation {annotation.get('id')}"
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        try:
            polygons = [np.asarray(p, dtype=np.float32).reshape(-1, 2) for p in segmentation]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{where} is no list of polygons [x1, y1, x2, y2, ...]: {error}"
            ) from error
        return [polygon for polygon in polygons if len(polygon) >= 3]
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(f"{where} is neither a list of polygons nor run lengths (size and counts)")
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"{where} is of size {segmentation['size']}, its image of {list(size)}")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if sum(counts) != size[0] * size[1]:
            raise ValueError(f"{where} has run lengths whose sum is not the area of its image")
        counts = pycocotools.mask.frPyObjects(segmentation, *size)["counts"]
    return counts.encode() if isinstance(counts, str) else counts


def _pack_shapes(shapes: list[Shape | None]) -> dict[str, Tensor]:
    rles = [shape if isinstance(shape, bytes) else b"" for shape in shapes]
    polygons = [shape if isinstance(shape, list) else [] for shape in shapes]
    flat = [polygon for shape in polygons for polygon in shape]
    points = np.concatenate(flat) if flat else np.zeros((0, 2), dtype=np.float32)
    return {
        "rles": _bytes(rles),
        "rle_ends": _ends(rles),
        "polygon_ends": _ends(polygons),
        "point_ends": _ends(flat),
        "points": torch.from_numpy(points),
    }


def _ends(parts: Sequence[Any]) -> Tensor:
    return torch.tensor([len(part) for part in parts], dtype=torch.int64).cumsum(0)


def _bytes(parts: list[bytes]) -> Tensor:
    return torch.from_numpy(np.array(bytearray(b"".join(parts)), dtype=np.uint8))
