"""The images and categories of a repaired copy.

N images, K categories.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mrcnn_lightning.data.checking.boxes import leave_image
from mrcnn_lightning.data.checking.check import Checked
from mrcnn_lightning.data.checking.entries import is_whole, number_in
from mrcnn_lightning.data.checking.image_files import found_images

# Sides are rounded, so that the two scales of a resized image are not quite equal.
_SAME_SHAPE = 0.02


@dataclass
class Listing:
    """What is listed, and what became of each row of the file."""

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    image_ids: dict[int, int]  # by row; a row that is not there was dropped
    class_ids: dict[int, int]
    rescaled: dict[int, tuple[int, int]]  # rows of images, with their real height and width
    moved_images: set[int]  # rows of images whose objects are to be written anew
    moved_classes: set[int]
    unjudged: set[int]  # rows of images whose objects are mended when their size is known


def mended_listing(
    tree: dict[str, Any], checked: Checked, folder: Path, changes: Counter[str]
) -> Listing:
    """Mend the images and categories of a file.

    Args:
        tree: the file.
        checked: what was found in it.
        folder: of its images.
        changes: is added to.
    """
    listing = Listing([], [], {}, {}, {}, set(), set(), set())
    _mend_categories(tree["categories"], checked, listing, changes)
    _mend_images(tree["images"], checked, folder, listing, changes)
    return listing


def _mend_categories(
    categories: Sequence[dict[str, Any]],
    checked: Checked,
    listing: Listing,
    changes: Counter[str],
) -> None:
    nameless, again = (
        set(checked.faults.rows(name)) for name in ("category-name", "category-id-twice")
    )
    ids = _ids([category.get("id") for category in categories])
    first: dict[str, int] = {}
    for row, (category, new_id) in enumerate(zip(categories, ids, strict=True)):
        if row in again:
            changes["categories of an id that another has dropped"] += 1
            continue
        name: Any = category.get("name")
        if row in nameless:
            is_number = isinstance(name, (int, float))
            name = str(name) if is_number else f"class {new_id}"
            changes["categories named"] += 1
        if name in first:
            listing.class_ids[row] = first[name]
            listing.moved_classes.add(row)
            changes["categories of one name made one"] += 1
            continue
        if not is_whole(category.get("id")):
            listing.moved_classes.add(row)
            changes["category ids made new"] += 1
        first[name] = listing.class_ids[row] = new_id
        listing.categories.append({**category, "id": new_id, "name": name})


def _mend_images(
    images: Sequence[dict[str, Any]],
    checked: Checked,
    folder: Path,
    listing: Listing,
    changes: Counter[str],
) -> None:
    reasons, moved = _reasons_to_drop(checked, images), {}
    for row, name in _elsewhere(checked, folder):
        moved[row] = name
        reasons.pop(row, None)
    sizes = _real_sizes(checked)
    resized = {row for row in sizes if _is_resized(row, sizes[row], checked)}
    if _has_sizes_to_come(checked, reasons, moved, set(sizes) - resized):
        # The format of all boxes is told by the sizes of all images: those come first.
        listing.unjudged.update(range(len(images)))
        sizes = {row: size for row, size in sizes.items() if row not in resized}
        resized = set()
    else:
        listing.unjudged.update(_without_size(checked))
    ids = _ids([image.get("id") for image in images])
    first: dict[str, int] = {}
    for row, (image, new_id) in enumerate(zip(images, ids, strict=True)):
        if row in reasons:
            changes[reasons[row]] += 1
            continue
        name = moved.get(row, image["file_name"])
        if row in resized:
            listing.rescaled[row] = sizes[row]
            listing.moved_images.add(row)
        if name in first:
            listing.image_ids[row] = first[name]
            listing.moved_images.add(row)
            changes["images of one file made one"] += 1
            continue
        if not is_whole(image.get("id")):
            listing.moved_images.add(row)
            changes["image ids made new"] += 1
        changes["names of files corrected"] += row in moved
        first[name] = listing.image_ids[row] = new_id
        entry = {**image, "id": new_id, "file_name": name}
        if row in sizes:
            entry["height"], entry["width"] = sizes[row]
            changes["sizes of images corrected"] += 1
        listing.images.append(entry)


def _reasons_to_drop(checked: Checked, images: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Rows of images that cannot be kept as they are, and why."""
    faults = checked.faults
    reasons = {
        row: "images without a file that can be read dropped"
        for name in ("file-name", "image-missing", "image-broken", "image-truncated")
        for row in faults.rows(name)
    }
    by_id: dict[Any, list[int]] = defaultdict(list)
    repeated = faults.rows("image-id-twice")
    ids_again = {images[row].get("id") for row in repeated}
    for row, image in enumerate(images if ids_again else []):
        if is_whole(image.get("id")) and image["id"] in ids_again:
            by_id[image["id"]].append(row)
    for rows in by_id.values():
        if len({repr(images[row].get("file_name")) for row in rows}) > 1:
            said = dict.fromkeys(rows, "images of one id, whose objects cannot be told, dropped")
        else:
            said = dict.fromkeys(rows[1:], "images that were listed again dropped")
        reasons = said | reasons
    return reasons


def _elsewhere(checked: Checked, folder: Path) -> Iterator[tuple[int, str]]:
    """Rows of images whose file is missing, and the only file of that name in a folder below."""
    assert checked.listed is not None
    missing = checked.faults.rows("image-missing")
    if not missing:
        return
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in found_images(folder):
        by_name[path.name.casefold()].append(path)
    for row in missing:
        name = str(checked.listed.names[row]).replace("\\", "/")
        candidates = by_name[PurePosixPath(name).name.casefold()]
        if len(candidates) == 1:
            yield row, candidates[0].relative_to(folder).as_posix()


def _real_sizes(checked: Checked) -> dict[int, tuple[int, int]]:
    """Heights and widths of the files, of images that have another one or none in the json."""
    assert checked.files is not None
    sizes = {}
    for name in ("image-size", "image-size-differs"):
        for row in checked.faults.rows(name):
            file = checked.files[row]
            if file is not None and file.header is not None:
                height, width = file.header.upright
                sizes[row] = (height, width)
    return sizes


def _without_size(checked: Checked) -> set[int]:
    assert checked.listed is not None
    return set(np.flatnonzero((checked.listed.sizes == 0).any(axis=1)).tolist())


def _has_sizes_to_come(
    checked: Checked, reasons: dict[int, str], moved: dict[int, str], wrong: set[int]
) -> bool:
    """Whether an image that is kept has its size corrected, or is found where that can be read."""
    return bool((wrong | (set(moved) & _without_size(checked))) - set(reasons))


def _is_resized(row: int, size: tuple[int, int], checked: Checked) -> bool:
    """Whether an image was resized after its objects were made, which fit the size in the file."""
    assert checked.listed is not None and checked.objects is not None
    assert checked.corners is not None
    old = checked.listed.sizes[row]
    if not old.all():
        return False
    scales = np.array(size) / old
    corners = checked.corners[checked.objects.images == row]
    corners = corners[np.isfinite(corners).all(axis=1)]
    is_same_shape = abs(scales[0] / scales[1] - 1) < _SAME_SHAPE
    return bool(is_same_shape and not leave_image(corners, old[None]).any())


def _ids(values: Sequence[Any]) -> list[int]:
    """Whole numbers as they are, texts of one as that, and new ones for what is left."""
    numbers = [number_in(value) for value in values]
    taken = {int(number) for number in numbers if is_whole(number)}
    new = (number for number in count(1) if number not in taken)
    seen: set[int] = set()
    ids = []
    for value, number in zip(values, numbers, strict=True):
        is_taken = not is_whole(number) or (isinstance(value, str) and number in seen)
        ids.append(next(new) if is_taken else int(number))
        seen.add(ids[-1])
    return ids
