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
        `class_names` and `category_ids` of the labels, `is_annotated` (whether the file has
        `annotations`), `without_mask` (ids of objects, crowds aside, without a segmentation), and
        tensors in the order of the file: `image_ids` (N,), `image_sizes` (N, 2) height and width,
        `names` bytes, `name_ends` (N,), `object_ends` (N,), `boxes` (O, 4) float32 x1, y1, x2,
        y2, `labels` (O,), `crowd` (O,), `rles` bytes, `rle_ends` (O,), `polygon_ends` (O,),
        `point_ends` (Q,), `points` (T, 2) float32.

    Raises:
        ValueError: names the file, and what is wrong with it.
    """
    content = _read(Path(file))
    categories, images = content["categories"], content["images"]
    _require_values(categories, {"id": int, "name": str}, "category", file)
    _require_values(
        images, {"id": int, "file_name": str, "height": int, "width": int}, "image", file
    )
    _require_unique(categories, "name", "categories", file)
    _require_unique(categories, "id", "categories", file)
    _require_unique(images, "id", "images", file)
    categories = sorted(categories, key=lambda category: category["id"])
    names = [image["file_name"].encode() for image in images]
    return {
        "class_names": [category["name"] for category in categories],
        "category_ids": [int(category["id"]) for category in categories],
        "is_annotated": "annotations" in content,
        "image_ids": torch.tensor([int(image["id"]) for image in images]),
        "image_sizes": torch.tensor([(int(i["height"]), int(i["width"])) for i in images]),
        "names": _bytes(names),
        "name_ends": _ends(names),
        **_pack_objects(content.get("annotations") or [], images, categories, file),
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
    for key in ("images", "categories", "annotations"):
        entries = content.get(key) or []
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{file} is no COCO-format file: its {key} are no list of objects")
    return content


def _require_values(
    entries: list[dict[str, Any]], keys: dict[str, type], what: str, file: str | Path
) -> None:
    for number, entry in enumerate(entries, start=1):
        for key, kind in keys.items():
            value = entry.get(key)
            if not (isinstance(value, str) if kind is str else _is_whole(value, key != "id")):
                what_it_is = "text" if kind is str else f"a whole number from {int(key != 'id')} on"
                raise ValueError(
                    f"{file}: {what} {number} of {len(entries)} has {key}={value!r}, which must be "
                    f"{what_it_is}"
                )


def _is_whole(value: Any, is_positive: bool) -> bool:
    return _is_number(value) and value == int(value) and value >= is_positive


def _require_unique(entries: list[dict[str, Any]], key: str, what: str, file: str | Path) -> None:
    seen = set()
    for entry in entries:
        if entry[key] in seen:
            raise ValueError(f"{file} has two {what} with the {key} {entry[key]}")
        seen.add(entry[key])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _pack_objects(
    annotations: list[dict[str, Any]],
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    file: str | Path,
) -> dict[str, Any]:
    labels = {category["id"]: label for label, category in enumerate(categories, start=1)}
    numbers = {image["id"]: number for number, image in enumerate(images)}
    _require_known(annotations, "image_id", numbers, "an image", file)
    _require_known(annotations, "category_id", labels, "a category", file)
    objects: list[list[tuple[dict[str, Any], Shape | None]]] = [[] for _ in images]
    for annotation in annotations:
        number = numbers[annotation["image_id"]]
        size = (int(images[number]["height"]), int(images[number]["width"]))
        _, _, width, height = _box(annotation, file)
        shape = _shape(annotation, size, file)
        if width > 0 and height > 0 and shape != []:
            objects[number].append((annotation, shape))

    kept = [annotation for image in objects for annotation, _ in image]
    shapes = [shape for image in objects for _, shape in image]
    crowd = torch.tensor([bool(annotation.get("iscrowd", 0)) for annotation in kept])
    boxes = torch.tensor([annotation["bbox"] for annotation in kept], dtype=torch.float64)
    origins, sides = boxes.view(-1, 4).split(2, dim=1)
    return {
        "without_mask": [
            annotation.get("id")
            for annotation, shape, is_crowd in zip(kept, shapes, crowd.tolist(), strict=True)
            if shape is None and not is_crowd
        ],
        "object_ends": _ends(objects),
        "boxes": torch.cat([origins, origins + sides], dim=1).float(),
        "labels": torch.tensor([labels[entry["category_id"]] for entry in kept]).long(),
        "crowd": crowd.bool(),
        **_pack_shapes(shapes),
    }


def _require_known(
    annotations: list[dict[str, Any]],
    key: str,
    known: dict[int, int],
    what: str,
    file: str | Path,
) -> None:
    def is_known(value: Any) -> bool:
        return isinstance(value, (int, float, str)) and value in known

    unknown = [annotation for annotation in annotations if not is_known(annotation.get(key))]
    if unknown:
        first = ", ".join(
            f"annotation {annotation.get('id')} ({key} {annotation.get(key)})"
            for annotation in unknown[:3]
        )
        raise ValueError(
            f"{file}: {len(unknown)} annotations name {what} that the file does not list: "
            f"{first}{', ...' if len(unknown) > 3 else ''}"
        )


def _box(annotation: dict[str, Any], file: str | Path) -> Sequence[float]:
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
        raise ValueError(
            f"{file}: annotation {annotation.get('id')} has bbox={box}, which must be four numbers "
            "[x, y, width, height]"
        )
    return box


def _shape(annotation: dict[str, Any], size: tuple[int, int], file: str | Path) -> Shape | None:
    """The segmentation, None if there is none, an empty list if nothing of it is an area."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    try:
        if isinstance(segmentation, list):
            return _polygons(segmentation)
        if isinstance(segmentation, dict):
            return _rle(segmentation, size)
        raise ValueError("is neither a list of polygons nor run lengths")
    except ValueError as error:
        where = f"{file}: the segmentation of annotation {annotation.get('id')}"
        raise ValueError(f"{where} {error}") from error


def _polygons(segmentation: list[Any]) -> list[npt.NDArray[np.float32]]:
    polygons = []
    for polygon in segmentation:
        is_flat = isinstance(polygon, list) and all(_is_number(value) for value in polygon)
        if not is_flat or len(polygon) % 2:
            raise ValueError("is no list of polygons [x1, y1, x2, y2, ...] of finite numbers")
        if len(polygon) >= 6:
            polygons.append(np.asarray(polygon, dtype=np.float32).reshape(-1, 2))
    return polygons


def _rle(segmentation: dict[str, Any], size: tuple[int, int]) -> bytes:
    if segmentation.get("size") != list(size):
        raise ValueError(f"is of size {segmentation.get('size')}, its image of {list(size)}")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        lengths = _lengths(counts)
    elif isinstance(counts, list) and all(isinstance(count, int) for count in counts):
        lengths = counts
    else:
        raise ValueError("has neither a text nor a list of whole numbers as counts")
    if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
        raise ValueError("has run lengths whose sum is not the area of its image")
    if isinstance(counts, str):
        return counts.encode()
    return pycocotools.mask.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]


def _lengths(counts: str) -> list[int]:
    """The run lengths in COCO's compressed text, which pycocotools reads without any check.

    Each character has five bits, the lowest first, and a bit that says whether more follow; from
    the fourth number on, the difference to the last but one is written.
    """
    lengths: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError("has counts that are no compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("has counts that end within a number")
    return lengths


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
