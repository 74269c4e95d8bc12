"""COCO-format files: read, checked and packed into tensors.

N images, O objects of all images, Q polygons of all objects, T points of all polygons.
"""

import json
import mmap
import reprlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import torch

from mrcnn_lightning.data.lvis import name_by_url, pack_federation
from mrcnn_lightning.data.packed_objects import Annotation, PackedObjects, tensor_of
from mrcnn_lightning.data.segmentations import is_number
from mrcnn_lightning.user_error import UserError

# After so many annotations the pages of the file that they lie on are given back.
_PER_RELEASE = 100


class ImageEntry(msgspec.Struct, gc=False):
    """An image of a file, as it is there."""

    id: Any = None
    file_name: Any = None
    height: Any = None
    width: Any = None
    coco_url: Any = None  # LVIS v1 names its images by it
    neg_category_ids: Any = None  # LVIS: classes that are not in the image
    not_exhaustive_category_ids: Any = None  # LVIS: those with objects that are not annotated


class CategoryEntry(msgspec.Struct, gc=False):
    """A class of a file, as it is there."""

    id: Any = None
    name: Any = None
    frequency: Any = None  # LVIS: r, c or f


class _Place(msgspec.Struct, gc=False):
    """What says where an annotation belongs."""

    id: Any = None
    image_id: Any = None
    category_id: Any = None


class _Lists(msgspec.Struct, gc=False):
    """A file whose annotations are still text."""

    images: list[ImageEntry]
    categories: list[CategoryEntry]
    annotations: list[msgspec.Raw] | None = None


_Entry = TypeVar("_Entry", bound=msgspec.Struct)
_Result = TypeVar("_Result")


@dataclass
class Content:
    """The lists of a file; annotations are decoded one by one."""

    images: list[ImageEntry]
    categories: list[CategoryEntry]
    annotations: Sequence[Any] | None
    decoder: Callable[[type[Any]], Callable[[Any], Any]]  # of one annotation
    release: Callable[[], None]  # the memory of what was decoded

    def decoded(self, kind: type[_Entry], order: Iterable[int] | None = None) -> Iterator[_Entry]:
        """The annotations one by one."""
        entries, decode = self.annotations or [], self.decoder(kind)
        for count, number in enumerate(range(len(entries)) if order is None else order):
            if count % _PER_RELEASE == 0:
                self.release()
            yield decode(entries[number])


def pack_coco_json(file: str | Path) -> dict[str, Any]:
    """A COCO-format file as a dictionary of tensors, strings and lists.

    Objects that nothing can be learnt from are left out: boxes without an area or outside their
    image, and polygons that all have fewer than three points. An area that is no positive number
    is measured from the mask, or else from the box. Category ids become labels 1..K in the order
    of the ids.

    Args:
        file: with `images` and `categories`; without `annotations` no image has objects.

    Returns:
        `class_names` and `category_ids` of the labels, `is_annotated` (whether the file has
        `annotations`), `without_mask` (ids of objects, crowds aside, without a segmentation),
        `left_out` (how many objects for which reason), `odd_areas` (how many were measured though
        the file has one), `has_id_0` (whether an annotation has), and tensors in the order of the
        file: `image_ids` (N,), `image_sizes` (N, 2) height and width, `names` bytes, `name_ends`
        (N,), `object_ends` (N,), `boxes` (O, 4) float64 x, y, width, height, `areas` (O,) float64,
        `labels` (O,), `crowd` (O,), `rles` bytes, `rle_ends` (O,), `polygon_ends` (O,),
        `point_ends` (Q,), `points` (T, 2) float64. Of a file in LVIS's format also what
        `pack_federation` gives.

    Raises:
        UserError: names the file, and what is wrong with it.
    """
    return read_coco_json(file, partial(_packed, file=file))


def read_coco_json(file: str | Path, use: Callable[[Content], _Result]) -> _Result:
    """What a function makes of a file's lists; it may be called twice.

    Args:
        file: in COCO's format.
        use: gets the lists, in which any value may be of any kind.

    Raises:
        UserError: the file is no JSON, or has no lists of objects of COCO's names.
    """
    try:
        try:
            return use(_read_mapped(Path(file)))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            # No JSON by the book, as with NaN; or none of COCO's, of which more can be said.
            return use(_read_whole(Path(file)))
    except RecursionError as error:
        raise UserError(f"{file} is no COCO-format file: it is nested too deeply") from error


def _read_mapped(file: Path) -> Content:
    """A file of which only the part at hand is in memory."""
    if file.stat().st_size == 0:
        raise UserError(f"{file} is not a JSON file: it is empty")
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    lists = msgspec.json.decode(mapped, type=_Lists)
    name_by_url(lists.images)

    def release() -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)

    return Content(
        images=lists.images,
        categories=lists.categories,
        annotations=lists.annotations,
        decoder=lambda kind: msgspec.json.Decoder(kind).decode,
        release=release,
    )


def _read_whole(file: Path) -> Content:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is not a JSON file: {error}") from error
    for key in ("images", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{file} is no COCO-format file: it has no list of {key}")
    for key in ("images", "categories", "annotations"):
        entries = [] if content.get(key) is None else content[key]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{file} is no COCO-format file: its {key} are no list of objects")
    images = [_structured(image, ImageEntry) for image in content["images"]]
    name_by_url(images)
    return Content(
        images=images,
        categories=[_structured(category, CategoryEntry) for category in content["categories"]],
        annotations=content.get("annotations"),
        decoder=lambda kind: partial(_structured, kind=kind),
        release=lambda: None,
    )


def _structured(entry: dict[str, Any], kind: type[_Entry]) -> _Entry:
    return kind(**{key: entry[key] for key in kind.__struct_fields__ if key in entry})


def _packed(content: Content, file: str | Path) -> dict[str, Any]:
    images, categories = content.images, content.categories
    for key, entries in (("images", images), ("categories", categories)):
        if not entries:
            raise UserError(f"{file} has no {key}")
    _require_values(categories, {"id": 63, "name": None}, "category", file)
    _require_values(images, {"id": 63, "file_name": None, "height": 16, "width": 16}, "image", file)
    _require_unique(categories, "name", "categories", file)
    _require_unique(categories, "id", "categories", file)
    _require_unique(images, "id", "images", file)
    categories = sorted(categories, key=lambda category: category.id)
    names = [image.file_name.encode() for image in images]
    return {
        "class_names": [category.name for category in categories],
        "category_ids": [int(category.id) for category in categories],
        "is_annotated": content.annotations is not None,
        "image_ids": torch.tensor([int(image.id) for image in images]),
        "image_sizes": torch.tensor([(int(i.height), int(i.width)) for i in images]),
        "names": tensor_of(bytearray(b"".join(names))),
        "name_ends": torch.tensor([len(name) for name in names]).cumsum(0),
        **pack_federation(images, categories, file),
        **_pack_objects(content, categories, file),
    }


def _require_values(
    entries: Sequence[Any], keys: dict[str, int | None], what: str, file: str | Path
) -> None:
    """Require whole numbers below 2 ** bits (0 for ids alone), or names where bits are None."""
    for number, entry in enumerate(entries, start=1):
        for key, bits in keys.items():
            value = getattr(entry, key)
            if bits is None:
                problem = problem_of_name(value, is_file=key == "file_name")
            else:
                low = int(key != "id")
                is_whole = is_number(value) and value == int(value) and low <= value < 2**bits
                problem = "" if is_whole else f"a whole number from {low} on and below 2**{bits}"
            if problem:
                raise UserError(
                    f"{file}: {what} {number} of {len(entries)} has {key}={reprlib.repr(value)}, "
                    f"which must be {problem}"
                )


def problem_of_name(value: Any, *, is_file: bool) -> str:
    """What a name must be that it is not, or an empty text."""
    if not isinstance(value, str):
        return "text"
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        return "text of whole characters (it has a lone surrogate)"
    if is_file and any(len(part) > 255 for part in encoded.split(b"/")):
        return "a file's name of at most 255 bytes"
    return ""


def _require_unique(entries: Sequence[Any], key: str, what: str, file: str | Path) -> None:
    seen = set()
    for entry in entries:
        value = getattr(entry, key)
        if value in seen:
            raise UserError(f"{file} has two {what} with the {key} {str(value)[:80]}")
        seen.add(value)


def _pack_objects(
    content: Content, categories: list[CategoryEntry], file: str | Path
) -> dict[str, Any]:
    labels = {category.id: label for label, category in enumerate(categories, start=1)}
    numbers = {image.id: number for number, image in enumerate(content.images)}
    image_of, label_of = _places(content, numbers, labels, file)
    objects = PackedObjects()
    order = np.argsort(image_of, kind="stable")
    for number, annotation in zip(order, content.decoded(Annotation, order), strict=True):
        image = content.images[image_of[number]]
        try:
            objects.add(
                annotation,
                image=image_of[number],
                size=(int(image.height), int(image.width)),
                label=label_of[number],
            )
        except ValueError as error:
            raise UserError(f"{file}: {error}") from error
    return objects.packed(len(content.images))


def _places(
    content: Content, numbers: dict[Any, int], labels: dict[Any, int], file: str | Path
) -> "tuple[array[int], array[int]]":
    """The number of each annotation's image, and its label."""
    images, classes = array("q"), array("q")
    strangers: list[_Place] = []
    for place in content.decoded(_Place):
        image, label = _found(place.image_id, numbers), _found(place.category_id, labels)
        if image < 0 or label < 0:
            strangers.append(place)
        images.append(image)
        classes.append(label)
    for key, known, what in (
        ("image_id", numbers, "an image"),
        ("category_id", labels, "a category"),
    ):
        unknown = [place for place in strangers if _found(getattr(place, key), known) < 0]
        if unknown:
            first = ", ".join(
                f"annotation {reprlib.repr(place.id)} ({key} {reprlib.repr(getattr(place, key))})"
                for place in unknown[:3]
            )
            raise UserError(
                f"{file}: {len(unknown)} annotations name {what} that the file does not list: "
                f"{first}{', ...' if len(unknown) > 3 else ''}"
            )
    return images, classes


def _found(value: Any, known: dict[Any, int]) -> int:
    try:
        return known.get(value, -1)
    except TypeError:  # a list, say
        return -1
