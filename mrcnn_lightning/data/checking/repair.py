"""A repaired copy of a COCO-format file: what was found is mended, or else dropped.

N images, K categories, O objects.
"""

import json
import mmap
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mrcnn_lightning.data.checking.check import Checked, check
from mrcnn_lightning.data.checking.faults import KINDS, OF_OBJECTS
from mrcnn_lightning.data.checking.listing import Listing, mended_listing
from mrcnn_lightning.data.checking.mending import Mender, scale
from mrcnn_lightning.data.checking.whole_set import TrainingSize
from mrcnn_lightning.data.lvis import name_entries_by_url
from mrcnn_lightning.user_error import UserError

# What was mended may show what it hid, as polygons taken away do a lacking mask; names of files
# come before sizes of images, and those before objects.
_MAX_ROUNDS = 6
_OF_IDS = ("annotation-id", "annotation-id-twice", "annotation-id-0")
_Tree = dict[str, Any]


@dataclass
class Repaired:
    """A repaired copy: how often each thing was changed, and what is left when checked again."""

    changes: Counter[str]
    checked: Checked


def repair(
    json: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    checked: Checked,
    size: TrainingSize | None = None,
) -> Repaired:
    """Write a copy of a file in which what was found is mended, or else dropped.

    Args:
        json: the file, which is left as it is.
        images: the folder of its images.
        out: a new file.
        checked: what was found.
        size: as `checked` was given.

    Raises:
        UserError: `out` exists, or the file is none of COCO's.
    """
    json, out = Path(json), Path(out)
    if out.exists():
        raise UserError(f"{out} exists: give the repaired copy another name")
    if checked.listed is None:
        reason = next(iter(checked.found())).sentence()
        raise UserError(f"{json} cannot be repaired: {reason}")
    out.parent.mkdir(parents=True, exist_ok=True)
    changes: Counter[str] = Counter()
    known = {file.path: file for file in checked.files or [] if file is not None}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        source = json
        for number in range(_MAX_ROUNDS):
            copy = Path(folder, f"{number}.json")
            _write_mended(source, copy, checked, Path(images), changes)
            if source != json:
                source.unlink()
            source = copy
            checked = check(copy, images, size=size, known=known)
            if not any(KINDS[fault.name].is_mended for fault in checked.found()):
                break
        os.replace(source, out)  # noqa: PTH105
    return Repaired(+changes, checked)


def _write_mended(
    source: Path, target: Path, checked: Checked, folder: Path, changes: Counter[str]
) -> None:
    tree = _read(source)
    changes["names of files written as LVIS means them"] += name_entries_by_url(tree["images"])
    listing = mended_listing(tree, checked, folder, changes)
    annotations = tree.get("annotations") or []
    with target.open("wb") as file:
        rest = {key: value for key, value in tree.items() if key not in _LISTS}
        head = rest | {"images": listing.images, "categories": listing.categories}
        file.write(_encoded(head)[:-1] + b', "annotations": [')
        separator = b"\n"
        for annotation in _mended(annotations, checked, listing, changes):
            file.write(separator + _encoded(annotation))
            separator = b",\n"
        file.write(b"\n]}\n")


_LISTS = ("images", "categories", "annotations")


class _Raw(msgspec.Struct):
    annotations: list[msgspec.Raw] | None = None


def _read(file: Path) -> _Tree:
    """A file whose annotations are still text, where it is JSON by the book."""
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        tree: _Tree = msgspec.json.decode(mapped, type=dict[str, msgspec.Raw])
        annotations = msgspec.json.decode(mapped, type=_Raw).annotations
        read = {key: msgspec.json.decode(tree[key]) for key in tree if key != "annotations"}
        return {**read, "annotations": annotations}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        whole: _Tree = json.loads(file.read_bytes().decode(errors="replace"))
        return whole


def _decoded(annotation: Any) -> dict[str, Any]:
    if not isinstance(annotation, msgspec.Raw):
        return dict(annotation)
    try:
        decoded: dict[str, Any] = msgspec.json.decode(annotation)
    except (msgspec.MsgspecError, UnicodeDecodeError):  # a lone surrogate, say
        decoded = json.loads(bytes(annotation).decode(errors="replace"))
    return decoded


def _encoded(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
        return json.dumps(value).encode()


def _mended(
    annotations: Sequence[Any], checked: Checked, listing: Listing, changes: Counter[str]
) -> Iterator[Any]:
    objects, faults = checked.objects, checked.faults
    assert objects is not None and checked.corners is not None and checked.listed is not None
    kinds: dict[int, set[str]] = defaultdict(set)
    for name in (each for each, kind in OF_OBJECTS.items() if kind.is_mended):
        for row in faults.rows(name):
            kinds[row].add(name)
    next_id = max(objects.ids, default=0) + 1
    mender = Mender(changes)
    for row, raw in enumerate(annotations):
        image, label = int(objects.images[row]), int(objects.labels[row])
        place = listing.image_ids.get(image), listing.class_ids.get(label)
        if place[0] is None or place[1] is None:
            changes["objects of no image or category that is kept dropped"] += 1
            continue
        of_row = kinds.get(row, set())
        is_moved = image in listing.moved_images or label in listing.moved_classes
        if not of_row and not is_moved:
            yield raw
            continue
        annotation = _decoded(raw)
        height, width = checked.listed.sizes[image].tolist()
        if image not in listing.unjudged and not mender.mend(
            annotation,
            of_row,
            size=(height, width),
            corners=checked.corners[row],
            extent=objects.extents[row],
        ):
            continue
        if image in listing.rescaled:
            scale(annotation, (height, width), listing.rescaled[image])
            changes["objects scaled to the size of their image"] += 1
        annotation["image_id"], annotation["category_id"] = place
        changes["ids of objects written as numbers"] += "id-as-text" in of_row
        if of_row.intersection(_OF_IDS):
            annotation["id"], next_id = next_id, next_id + 1
            changes["annotation ids made new"] += 1
        yield annotation
