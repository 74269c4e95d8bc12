"""All checks of a data set, one after the other."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mrcnn_lightning.data.checking.boxes import COCO_FORMAT, Floats, Format
from mrcnn_lightning.data.checking.entries import Listed, list_entries, shown
from mrcnn_lightning.data.checking.faults import Fault, Faults
from mrcnn_lightning.data.checking.image_files import ImageFile, check_files, copies, look_at
from mrcnn_lightning.data.checking.objects import ObjectReader, ObjectTable
from mrcnn_lightning.data.checking.whole_set import TrainingSize, check_boxes, check_set
from mrcnn_lightning.data.coco_json import Content, read_coco_json
from mrcnn_lightning.data.near_copies import near_copies
from mrcnn_lightning.user_error import UserError

# More images than this are not compared for likeness: that takes as long as their square.
_MOST_COMPARED = 30_000


@dataclass
class Checked:
    """A set, and what is wrong with it."""

    faults: Faults
    listed: Listed | None = None  # None where the file is none of COCO's
    objects: ObjectTable | None = None
    files: list[ImageFile | None] | None = None  # None where they were not looked at
    box_format: Format = COCO_FORMAT
    corners: Floats | None = None  # (O, 4) boxes x1, y1, x2, y2; NaN where there are none

    def found(self) -> list[Fault]:
        """The faults, the worst first."""
        return self.faults.found()

    def numbers(self) -> dict[str, int]:
        """How many images, objects and classes there are."""
        if self.listed is None or self.objects is None:
            return {}
        return {
            "images": len(self.listed.names),
            "objects": len(self.objects.ids),
            "classes": len(self.listed.classes),
        }


def check(
    json: str | Path,
    images: str | Path,
    *,
    size: TrainingSize | None = None,
    known: dict[Path, ImageFile] | None = None,
) -> Checked:
    """Check a set: its file, and every image to its end.

    Args:
        json: in COCO's format, however damaged.
        images: the folder that file names start from.
        size: what objects are compared with; None leaves that out.
        known: files that were looked at before; is added to.
    """
    try:
        checked = read_coco_json(json, partial(_checked, size=size))
    except UserError as error:
        faults = Faults()
        faults.add("not-coco", shown(str(error)))
        return Checked(faults)
    listed = checked.listed
    if listed is not None:
        checked.files = look_at(images, listed.names, {} if known is None else known)
        check_files(checked.files, listed, images, checked.faults)
    return checked


def compare(checked: Checked, other: Checked) -> None:
    """Note what a set has in common with another split that it should not, and what it lacks."""
    if checked.listed is None or other.listed is None:
        return
    faults, num = checked.faults, len(checked.listed.names)
    for first, row in copies([*(checked.files or []), *(other.files or [])]):
        if first < num <= row:
            place = f"{checked.listed.image(first)} is {other.listed.image(row - num)}"
            faults.add("copies-across", place, first)
    ours, theirs = (
        set(zip(each.class_ids, each.classes, strict=True))
        for each in (checked.listed, other.listed)
    )
    for class_id, name in sorted(ours ^ theirs, key=str):
        faults.add("other-classes", f"{name} ({class_id})")


def find_near_copies(checked: Checked, other: Checked | None = None) -> bool:
    """Note images that look like another one, of the set or of another split.

    Exact copies are not noted again.

    Returns:
        Whether they were looked for: every two images are compared, which has its limit.
    """
    images = [*_readable(checked), *(_readable(other) if other is not None else [])]
    num_ours = len(_readable(checked))
    if len(images) > _MOST_COMPARED:
        return False
    faults = checked.faults
    said = {row for name in ("copies", "copies-across") for row in faults.rows(name)}
    for group in near_copies([image.path for image in images]):
        ours = [images[number] for number in group if number < num_ours]
        theirs = [images[number] for number in group if number >= num_ours]
        for name, first, others in (
            ("near-copies", ours[:1], ours[1:]),
            ("near-copies-across", theirs[:1], ours),
        ):
            for image in others if first else []:
                if image.row not in said:
                    faults.add(name, f"{image.name} and {first[0].name}", image.row)
    return True


class _Readable(NamedTuple):
    row: int
    name: str
    path: Path


def _readable(checked: Checked) -> list[_Readable]:
    """The images whose files can be read; a file that several name is there once."""
    if checked.listed is None or checked.files is None:
        return []
    images: dict[Path, _Readable] = {}
    for row, file in enumerate(checked.files):
        if file is not None and not file.problem:
            images.setdefault(file.path, _Readable(row, checked.listed.image(row), file.path))
    return list(images.values())


def _checked(content: Content, size: TrainingSize | None) -> Checked:
    faults = Faults()  # anew, if the file has to be read another time
    listed = list_entries(content.images, content.categories, faults)
    if content.annotations is None:
        faults.add("no-annotations")
    objects = ObjectReader(listed, faults).read(content)
    box_format, corners = check_boxes(objects, listed, faults)
    check_set(objects, corners, listed, size, faults)
    return Checked(faults, listed, objects, box_format=box_format, corners=corners)
