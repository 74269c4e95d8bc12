"""Faults of a file's images and categories as they are listed: ids, names, sizes.

N images, K categories.
"""

import reprlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcnn_lightning.data.checking.faults import Faults
from mrcnn_lightning.data.coco_json import CategoryEntry, ImageEntry, problem_of_name
from mrcnn_lightning.data.segmentations import is_number

# Beyond these, ids and sides are not what `pack_coco_json` takes.
_MAX_ID, _MAX_SIDE = 2**63, 2**16


@dataclass
class Listed:
    """The images and categories of a file."""

    names: list[str | None]  # (N,) files; None where there is none
    sizes: npt.NDArray[np.int64]  # (N, 2) height and width, 0 where unknown
    classes: list[str]  # (K,)
    class_ids: list[str]  # (K,) as they are written
    image_rows: dict[Hashable, int]  # by id; the first if there are several
    class_rows: dict[Hashable, int]

    def image(self, row: int) -> str:
        """An image in the user's words."""
        return shown(self.names[row]) if self.names[row] is not None else f"image {row + 1}"

    def sizes_of(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Height and width (O, 2) of the images of some rows, 0 where they are unknown."""
        sizes = np.zeros((len(rows), 2), dtype=np.int64)
        sizes[rows >= 0] = self.sizes[rows[rows >= 0]]
        return sizes


def list_entries(
    images: Sequence[ImageEntry], categories: Sequence[CategoryEntry], faults: Faults
) -> Listed:
    """What images and categories a file has, and what is wrong with how they are listed."""
    if not images:
        faults.add("no-images")
    if not categories:
        faults.add("no-categories")
    listed = Listed(
        names=[_name(image.file_name) for image in images],
        sizes=np.array([_size(image) for image in images], dtype=np.int64).reshape(-1, 2),
        classes=[_class(category) for category in categories],
        class_ids=[shown(category.id) for category in categories],
        image_rows=_rows([image.id for image in images]),
        class_rows=_rows([category.id for category in categories]),
    )
    _check_ids("image-id", [image.id for image in images], listed.image, faults)
    _check_ids(
        "category-id",
        [category.id for category in categories],
        lambda row: shown(categories[row].name),
        faults,
    )
    for row, (name, size) in enumerate(zip(listed.names, listed.sizes.tolist(), strict=True)):
        if name is None:
            faults.add("file-name", f"image {row + 1} has {shown(images[row].file_name)}", row)
        if 0 in size:
            faults.add("image-size", listed.image(row), row)
    _check_repeats("file-name-twice", listed.names, faults)
    _check_class_names(categories, faults)
    return listed


def is_whole(value: Any, *, below: int = _MAX_ID, low: int = 0) -> bool:
    """Whether a value of a file is a whole number in a range."""
    return is_number(value) and value == int(value) and low <= value < below


def number_in(value: Any) -> Any:
    """The number that a text is, or the value itself."""
    is_short = isinstance(value, str) and len(value) < 20
    return int(value) if is_short and value.isascii() and value.isdigit() else value


def found_row(value: Any, rows: dict[Hashable, int]) -> int:
    """The row with an id, -1 if there is none."""
    try:
        return rows.get(value, -1)
    except TypeError:  # a list, say
        return -1


def shown(value: Any) -> str:
    """A value of a file in a message: short, and of characters that can be written."""
    text = value[:80] if isinstance(value, str) else reprlib.repr(value)
    return text.encode(errors="backslashreplace").decode().replace("\n", " ").replace("\r", " ")


def _name(value: Any) -> str | None:
    return value if value and not problem_of_name(value, is_file=True) else None


def _size(image: ImageEntry) -> tuple[int, int]:
    sides = (image.height, image.width)
    if all(is_whole(side, below=_MAX_SIDE, low=1) for side in sides):
        return int(sides[0]), int(sides[1])
    return 0, 0


def _class(category: CategoryEntry) -> str:
    return shown(category.name if isinstance(category.name, str) else category.id)


def _rows(ids: Sequence[Any]) -> dict[Hashable, int]:
    rows: dict[Hashable, int] = {}
    for row, value in enumerate(ids):
        # Numbers first: objects with the id 7 are of the image 7, not of the image "7".
        if isinstance(value, Hashable):
            rows.setdefault(value, row)
    for row, value in enumerate(ids):
        if isinstance(value, str):
            rows.setdefault(number_in(value), row)
    return rows


def _check_ids(name: str, ids: Sequence[Any], place: Any, faults: Faults) -> None:
    seen: set[Hashable] = set()
    for row, value in enumerate(ids):
        if not is_whole(value):
            faults.add(name, f"{place(row)} has {shown(value)}", row)
        elif value in seen:
            faults.add(f"{name}-twice", f"{shown(value)} of {place(row)}", row)
        else:
            seen.add(value)


def _check_repeats(name: str, values: Sequence[Any], faults: Faults) -> None:
    seen: set[Hashable] = set()
    for row, value in enumerate(values):
        if value is not None and value in seen:
            faults.add(name, shown(value), row)
        seen.add(value)


def _check_class_names(categories: Sequence[CategoryEntry], faults: Faults) -> None:
    names = [category.name for category in categories]
    for row, value in enumerate(names):
        if not value or problem_of_name(value, is_file=False):
            faults.add("category-name", f"category {shown(categories[row].id)}", row)
            names[row] = None
    _check_repeats("category-name-twice", names, faults)
    alike: dict[str, str] = {}
    for name in names:
        if name is not None:
            first = alike.setdefault("".join(name.split()).casefold(), name)
            if first != name:
                faults.add("category-name-alike", f"{shown(first)} and {shown(name)}")
