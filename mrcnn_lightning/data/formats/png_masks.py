"""Masks as png files whose pixels are the objects' numbers, and a json file of their classes.

H and W of the image.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mrcnn_lightning.data.formats.image_set import (
    ImageSet,
    LabeledImage,
    LabeledObject,
    Mask,
    image_files,
    mask_object,
    read_text,
    read_values,
    stems,
)
from mrcnn_lightning.user_error import UserError

_LIST = "objects.json"
_PIXELS = npt.NDArray[np.integer[Any]]


def read_png_masks(
    folder: Path, *, images: Path | None = None, class_name: str | None = None
) -> ImageSet:
    """A folder with `objects.json` as `write_png_masks` writes it, or one with `masks/` alone.

    Without `objects.json` every value but 0 of `masks/NAME.png` or `masks/NAME_mask.png` is an
    object of the image NAME, or every png file in `masks/NAME/` is one, all of one class.

    Args:
        folder: as said.
        images: the folder of images, `images/` in the folder if unset; their names are needed if
            there is no `objects.json`.
        class_name: of all objects, if there is no `objects.json`.

    Raises:
        UserError: names the file that is wrong.
    """
    if (folder / _LIST).exists():
        return _read_listed(folder)
    if class_name is None:
        raise UserError(f"there is no {folder / _LIST}: give all masks one class with --class-name")
    images = images or folder / "images"
    found = ImageSet([class_name], [])
    for name in image_files(images):
        with_masks = _masks_of(folder / "masks", Path(name).with_suffix("").as_posix())
        if not with_masks:
            found.notes["images without masks have no objects"] += 1
        image: LabeledImage | None = None
        for file in with_masks:
            values = read_values(file, str(file))
            height, width = values.shape
            image = image or LabeledImage(name, width, height)
            if values.shape != image.size:
                raise UserError(f"{file} has another size than the masks beside it: correct it")
            is_one_object = len(with_masks) > 1 or file.parent.name == Path(name).stem
            numbers = [0] if is_one_object else np.unique(values[values != 0]).tolist()
            for number in numbers:
                pixels = values != 0 if is_one_object else values == number
                labeled = mask_object(class_name, pixels, is_crowd=False)
                image.objects += [] if labeled is None else [labeled]
        if image is None:
            with Image.open(images / name) as opened:
                image = LabeledImage(name, *opened.size)
        found.images.append(image)
    if not found.images:
        raise UserError(f"there are no images in {images}")
    return found


def write_png_masks(image_set: ImageSet, out: Path) -> None:
    """A png file an image in `masks/`, whose pixels are 0 or an object's number, and a list.

    Objects that overlap go into further files (`NAME.2.png`), so that no pixel is lost. The list,
    `objects.json`, has `classes`, and `images` with `file_name`, `width`, `height` and `objects`,
    each with `mask` (the file), `value` (of its pixels), `class` and `iscrowd`.
    """
    listed = []
    for stem, image in stems(image_set).items():
        layers: list[_PIXELS] = []
        objects = []
        kind = np.uint8 if len(image.objects) < 2**8 else np.uint16
        for number, labeled in enumerate(image.objects, start=1):
            mask = labeled.mask(image.size)
            if mask is None:
                image_set.notes["boxes without a mask are left out"] += 1
                continue
            layer = _free_layer(layers, mask)
            if layer == len(layers):
                layers.append(np.zeros(image.size, dtype=kind))
            layers[layer][mask != 0] = number
            objects.append(
                {
                    "mask": f"masks/{stem}{f'.{layer + 1}' if layer else ''}.png",
                    "value": number,
                    "class": labeled.class_name,
                    "iscrowd": int(labeled.is_crowd),
                }
            )
        for number, pixels in enumerate(layers or [np.zeros(image.size, dtype=kind)], start=1):
            target = out / "masks" / f"{stem}{f'.{number}' if number > 1 else ''}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(target)
        size = {"width": image.width, "height": image.height}
        listed.append({"file_name": image.file_name, **size, "objects": objects})
    content = {"classes": image_set.class_names, "images": listed}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (out / _LIST).write_text(text, encoding="utf-8")


def _read_listed(folder: Path) -> ImageSet:
    file = folder / _LIST
    text = read_text(file)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} is not a JSON file: {error}") from error
    try:
        found = ImageSet([str(name) for name in content["classes"]], [])
        for entry in content["images"]:
            image = LabeledImage(entry["file_name"], int(entry["width"]), int(entry["height"]))
            opened: dict[str, _PIXELS] = {}
            for number, listed in enumerate(entry["objects"], start=1):
                labeled = _listed_object(listed, image, folder, opened)
                place = f"{file}: object {number} of {image.file_name}"
                if labeled is None:
                    raise UserError(f"{place}: {listed['mask']} has no pixel of {listed['value']}")
                if labeled.class_name not in found.class_names:
                    raise UserError(f"{place} is a {labeled.class_name}, which `classes` lacks")
                image.objects.append(labeled)
            found.images.append(image)
    except UserError:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not as docs/data.md says: {type(error).__name__} {error}"
        ) from error
    return found


def _listed_object(
    listed: dict[str, Any], image: LabeledImage, folder: Path, opened: dict[str, _PIXELS]
) -> LabeledObject | None:
    name = listed["mask"]
    if name not in opened:
        opened[name] = read_values(folder / name, str(folder / name))
    if opened[name].shape != image.size:
        raise UserError(
            f"{folder / name} is not of {image.width} x {image.height} pixels as {_LIST} says"
        )
    value, is_crowd = int(listed["value"]), bool(listed.get("iscrowd", 0))
    return mask_object(str(listed["class"]), opened[name] == value, is_crowd=is_crowd)


def _masks_of(folder: Path, stem: str) -> list[Path]:
    for name in (f"{stem}.png", f"{stem}_mask.png"):
        if (folder / name).exists():
            return [folder / name]
    return sorted((folder / stem).glob("*.png"))


def _free_layer(layers: list[_PIXELS], mask: Mask) -> int:
    """The first layer in which nothing lies under a mask; their number if there is none."""
    taken = (number for number, layer in enumerate(layers) if not layer[mask != 0].any())
    return next(taken, len(layers))
