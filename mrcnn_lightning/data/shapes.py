"""A generated set in COCO's format: overlapping discs, boxes and triangles on textured ground.

H and W of an image, n corners of an outline.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask
from filelock import FileLock
from PIL import Image

from mrcnn_lightning.user_error import UserError

# Sparse ids, as COCO's are.
CATEGORIES = {3: "disc", 7: "box", 12: "triangle"}
_PART_EMPTY = 0.05
_PART_CROWD = 0.1
# An object is not painted where it would leave less than this of another to be seen.
_LEAST_VISIBLE = 0.4

Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


def generate_shapes(
    *, root: str, num_train: int, num_val: int, image_size: int, max_objects: int, seed: int
) -> None:
    """Write `train/`, `val/` and `annotations/` below a folder, unless they are there already.

    Whole objects have polygons, partly hidden ones run lengths; some images have a crowd of small
    discs, some no object at all.

    Args:
        root: the folder, made if it is not there.
        num_train: images.
        num_val: images.
        image_size: height and width in pixels.
        max_objects: of an image, crowds not counted.
        seed: the same one draws the same set.

    Raises:
        UserError: the folder holds something else.
    """
    settings = {
        "num_train": num_train,
        "num_val": num_val,
        "image_size": image_size,
        "max_objects": max_objects,
        "seed": seed,
    }
    folder = Path(root)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            _require_same(folder, settings)
            return
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / "annotations").mkdir(parents=True)
        for number, (split, num) in enumerate((("train", num_train), ("val", num_val))):
            (unfinished / split).mkdir()
            content = _write_split(unfinished / split, num, image_size, max_objects, [seed, number])
            file = unfinished / "annotations" / f"instances_{split}.json"
            file.write_text(json.dumps({"info": settings} | content))
        unfinished.rename(folder)


def _require_same(folder: Path, settings: dict[str, int]) -> None:
    file = folder / "annotations" / "instances_train.json"
    found = json.loads(file.read_bytes()).get("info") if file.is_file() else None
    if found != settings:
        remedy = "your own files are data=custom" if found is None else "or delete this one"
        raise UserError(
            f"{folder} holds {found or 'something else'}, where shapes made with {settings} were "
            f"to go: give another data_root; {remedy}"
        )


def _write_split(
    folder: Path, num: int, image_size: int, max_objects: int, seed: list[int]
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, num + 1):
        name = f"{number:06d}.png"
        rng = np.random.default_rng([*seed, number])
        pixels, objects = _draw_image(rng, image_size, max_objects)
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "height": image_size, "width": image_size})
        for entry in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": number} | entry)
    categories = [{"id": id_, "name": name} for id_, name in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _draw_image(
    rng: np.random.Generator, size: int, max_objects: int
) -> tuple[Pixels, list[dict[str, Any]]]:
    """An image (H, W, 3), and its annotations without ids."""
    pixels = _texture(rng, size, coarse=8, contrast=60)
    if rng.random() < _PART_EMPTY:
        return pixels, []
    seen: list[tuple[int, Floats, Pixels]] = []  # category, outline, what is not hidden
    for _ in range(rng.integers(1, max_objects + 1)):
        category = int(rng.choice(list(CATEGORIES)))
        outline = _outline(rng, CATEGORIES[category], size)
        mask = _filled(outline, size)
        hidden = [
            (other & ~mask).sum() < _LEAST_VISIBLE * _filled(points, size).sum()
            for _, points, other in seen
        ]
        if mask.sum() < 16 or any(hidden):
            continue
        pixels[mask > 0] = _texture(rng, size, coarse=3, contrast=25)[mask > 0]
        seen = [(kind, points, other & ~mask) for kind, points, other in seen]
        seen.append((category, outline, mask))
    objects = [_annotation(*entry) for entry in seen]
    if rng.random() < _PART_CROWD:
        objects.append(_draw_crowd(rng, pixels, [mask for _, _, mask in seen]))
    return pixels, objects


def _texture(rng: np.random.Generator, size: int, *, coarse: int, contrast: float) -> Pixels:
    """A colour with patches and grain, (size, size, 3)."""
    patches = rng.uniform(-contrast, contrast, (coarse, coarse, 3))
    smooth = [
        np.asarray(Image.fromarray(patches[..., channel].astype(np.float32)).resize((size, size)))
        for channel in range(3)
    ]
    grain = rng.normal(0, 8, (size, size, 1))
    color = rng.uniform(20, 235, 3)
    pixels: npt.NDArray[np.uint8] = (
        (color + np.stack(smooth, axis=2) + grain).clip(0, 255).astype(np.uint8)
    )
    return pixels


def _outline(rng: np.random.Generator, name: str, size: int) -> Floats:
    """Corners (n, 2) of a shape somewhere in the image."""
    radius = size * rng.uniform(0.07, 0.28)
    center = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
    turn = rng.uniform(0, 2 * np.pi)
    if name == "disc":
        angles, radii = np.linspace(0, 2 * np.pi, 40, endpoint=False), radius
    elif name == "triangle":
        angles, radii = turn + np.arange(3) * 2 * np.pi / 3, radius * 1.2
    else:
        half = np.arctan(rng.uniform(0.4, 1.0))
        angles, radii = turn + np.array([half, np.pi - half, np.pi + half, -half]), radius
    points = center + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points.clip(0, size).round(2)


def _filled(outline: Floats, size: int) -> Pixels:
    rle = pycocotools.mask.frPyObjects([outline.flatten().tolist()], size, size)
    mask: npt.NDArray[np.uint8] = pycocotools.mask.decode(rle)[..., 0]
    return mask


def _annotation(category: int, outline: Floats, mask: Pixels) -> dict[str, Any]:
    rle = pycocotools.mask.encode(np.asfortranarray(mask))
    entry = {"category_id": category, "iscrowd": 0, "area": float(mask.sum())}
    if np.array_equal(mask, _filled(outline, len(mask))):
        low, high = outline.min(axis=0), outline.max(axis=0)
        bbox = [*low, *(high - low).round(2)]
        return entry | {"bbox": bbox, "segmentation": [outline.flatten().tolist()]}
    rle["counts"] = rle["counts"].decode()
    return entry | {"bbox": pycocotools.mask.toBbox(rle).tolist(), "segmentation": rle}


def _draw_crowd(rng: np.random.Generator, pixels: Pixels, others: list[Pixels]) -> dict[str, Any]:
    """Paint a heap of small discs behind the other objects; they are annotated as one crowd."""
    size = len(pixels)
    center = rng.uniform(0.25 * size, 0.75 * size, 2)
    crowd = np.zeros((size, size), dtype=np.uint8)
    for _ in range(12):
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        middle = center + rng.normal(0, 0.1 * size, 2)
        disc = middle + 0.04 * size * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        mask = _filled(disc.clip(0, size), size)
        for other in others:
            mask = mask & ~other
        pixels[mask > 0] = _texture(rng, size, coarse=2, contrast=10)[mask > 0]
        crowd |= mask
    column = crowd.flatten(order="F")
    changes = np.flatnonzero(np.diff(column, prepend=0, append=column[-1]))
    counts = np.diff(changes, prepend=0, append=len(column)).tolist()
    rle = pycocotools.mask.encode(np.asfortranarray(crowd))
    return {
        "category_id": next(id_ for id_, name in CATEGORIES.items() if name == "disc"),
        "iscrowd": 1,
        "area": float(crowd.sum()),
        "bbox": pycocotools.mask.toBbox(rle).tolist(),
        "segmentation": {"counts": counts, "size": [size, size]},
    }
