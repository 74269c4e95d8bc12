"""What LVIS's files have beside COCO's: which classes were looked for in an image.

N images.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

import torch

from mrcnn_lightning.user_error import UserError

# Keys of an image that list categories, and the names that they are packed by.
LISTS = {"neg_category_ids": "absent", "not_exhaustive_category_ids": "partial"}
_FREQUENCIES = ("r", "c", "f")


def name_by_url(images: Sequence[Any]) -> None:
    """Name image files as LVIS means it: below COCO's folder, or in one with COCO 2017's names.

    LVIS v1 has no `file_name`, but a `coco_url` that ends with the folder and the file; v0.5 has
    the names of COCO 2014, COCO_val2014_ before the twelve digits (as Detectron2 reads both).
    """
    for image in images:
        image.file_name = _file_name(image.file_name, image.coco_url, image.neg_category_ids)


def name_entries_by_url(images: Sequence[dict[str, Any]]) -> int:
    """As `name_by_url`, of images that are still dictionaries; how many names are new."""
    num_named = 0
    for image in images:
        old = image.get("file_name")
        name = _file_name(old, image.get("coco_url"), image.get("neg_category_ids"))
        if name != old:
            image["file_name"] = name
            num_named += 1
    return num_named


def _file_name(name: Any, url: Any, absent: Any) -> Any:
    if name is None and isinstance(url, str):
        name = "/".join(url.split("/")[-2:])
    if absent is not None and isinstance(name, str) and name.startswith("COCO_"):
        name = name.rpartition("_")[2]
    return name


def pack_federation(
    images: Sequence[Any], categories: Sequence[Any], file: str | Any
) -> dict[str, Any]:
    """Which classes are not in an image, and which were not annotated exhaustively.

    Args:
        images: of the file.
        categories: likewise.
        file: for messages.

    Returns:
        `frequencies` of the categories (r, c or f), and for `absent` and `partial` category ids
        `NAME_ids` with `NAME_ends` (N,); nothing where the file has no `neg_category_ids`.

    Raises:
        UserError: some images have no such lists, they are no lists of the file's categories, or a
            category has no frequency.
    """
    if all(image.neg_category_ids is None for image in images):
        return {}
    known = {category.id for category in categories}
    packed: dict[str, Any] = {"frequencies": [category.frequency for category in categories]}
    for category in categories:
        if category.frequency not in _FREQUENCIES:
            raise UserError(
                f"{file} has neg_category_ids, as LVIS has, but category {category.id} has "
                f"frequency={reprlib.repr(category.frequency)}, which must be r, c or f"
            )
    for key, name in LISTS.items():
        lists = [getattr(image, key) for image in images]
        for image, ids in zip(images, lists, strict=True):
            if not isinstance(ids, list) or not all(_is_known(each, known) for each in ids):
                raise UserError(
                    f"{file}: image {image.id} has {key}={reprlib.repr(ids)}, which must be a list "
                    "of the file's category ids"
                )
        packed[f"{name}_ids"] = torch.tensor([int(each) for ids in lists for each in ids]).long()
        packed[f"{name}_ends"] = torch.tensor([len(ids) for ids in lists]).cumsum(0)
    return packed


def _is_known(value: Any, known: set[Any]) -> bool:
    return isinstance(value, int) and value in known
