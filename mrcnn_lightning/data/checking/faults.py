"""What a fault of a data set is: its kinds, how many there are of each, and where."""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
# Of more places than this, only the first are named.
_SHOWN = 5


class Kind(NamedTuple):
    """A kind of fault: an error fails or teaches something wrong, a note is only good to know."""

    severity: Severity
    what: str
    remedy: str

    @property
    def is_mended(self) -> bool:
        """Whether `repair` does something about it, as the remedy says."""
        return "--fix" in self.remedy


_RENUMBER = "--fix gives new ids"
_FROM_MASK = "--fix takes the box from the mask, and drops the object where there is none"
_RESAVE = "save it again from its source; --fix drops the image and its objects"

_OF_THE_FILE = {
    "not-coco": Kind("error", "no COCO-format file", "export it again as COCO instances"),
    "no-images": Kind("error", "no images in the file", "export it again"),
    "no-categories": Kind("error", "no categories in the file", "list the classes as categories"),
    "no-annotations": Kind(
        "error", "no annotations in the file", "it serves stage=predict alone; annotate it"
    ),
    "no-masks": Kind(
        "warning", "no object has a segmentation", "model=faster_rcnn learns from boxes alone"
    ),
    "only-crowds": Kind(
        "error", "all objects are crowds, from which nothing is learnt", "set iscrowd to 0"
    ),
}
_OF_CATEGORIES = {
    "category-id": Kind("error", "category ids that are no whole numbers from 0 on", _RENUMBER),
    "category-id-twice": Kind(
        "error",
        "category ids that are there twice",
        "give each its own and correct the objects; --fix keeps the first name",
    ),
    "category-name": Kind("error", "categories without a name", "name them; --fix takes the id"),
    "category-name-twice": Kind(
        "error", "category names that are there twice", "--fix makes one class of them"
    ),
    "category-name-alike": Kind(
        "warning",
        "category names that differ only in case or spaces",
        "if they are one class, give both one name",
    ),
    "other-classes": Kind(
        "error",
        "categories that the two splits do not share",
        "list the same ids and names in both",
    ),
    "class-empty": Kind("note", "categories without objects", "they are learnt never to be there"),
    "class-rare": Kind(
        "note",
        "classes with fewer than 10 objects, or with a thousandth of the most frequent one's",
        "annotate more of them; their AP says little",
    ),
}
OF_IMAGES = {
    "image-id": Kind("error", "image ids that are no whole numbers from 0 on", _RENUMBER),
    "image-id-twice": Kind(
        "error",
        "image ids that are there twice",
        "give each its own; --fix drops a repeated entry, and images whose objects cannot be told",
    ),
    "file-name": Kind("error", "images without a file's name", "name it; --fix drops the image"),
    "file-name-twice": Kind(
        "error",
        "files that several images name, each without the other's objects",
        "--fix makes one image of them",
    ),
    "image-size": Kind(
        "error", "images without a width and height in whole pixels", "--fix reads the file's"
    ),
    "image-empty": Kind(
        "note", "images without objects", "data.skip_empty=true leaves them out of training"
    ),
    "image-missing": Kind(
        "error",
        "images whose file is missing",
        "give the folder that file_name starts from; --fix takes a file of that name from another "
        "folder below, or drops the image",
    ),
    "image-broken": Kind("error", "image files that cannot be read", _RESAVE),
    "image-too-large": Kind(
        "error",
        "images of more than 179 megapixels, which Pillow does not decode at once",
        "cut them into smaller files",
    ),
    "image-truncated": Kind("error", "image files that end too early", _RESAVE),
    "image-size-differs": Kind(
        "error",
        "images of another size than the file says",
        "--fix writes the real one, and scales objects that were made for a resized image",
    ),
    "image-turned": Kind(
        "warning",
        "images turned by EXIF, so that the size cannot tell whether objects are upright",
        "they are taken for those of the upright image: look at one in the report, or turn the "
        "pixels themselves and delete the EXIF orientation",
    ),
    "image-on-its-side": Kind(
        "note",
        "images on their side by EXIF",
        "read as upright or as stored, whichever has the size that the file says",
    ),
    "image-deep": Kind(
        "note",
        "images of more than 8 bits",
        "scaled by what each says or holds: scale them to 8 bits in one way to be sure",
    ),
    "image-alpha": Kind("note", "images with an alpha channel", "it is ignored"),
    "image-cmyk": Kind(
        "note", "images in CMYK", "converted without a colour profile: save them as RGB to be sure"
    ),
    "image-animated": Kind("note", "animated images", "only the first frame is read"),
    "image-unnamed": Kind(
        "note", "image files that no entry names", "annotate them, or leave them: they are not read"
    ),
    "copies": Kind(
        "warning",
        "files that are copies of another image",
        "keep one: objects that only one has are taught as background by the other",
    ),
    "near-copies": Kind(
        "note", "images that look like another one", "keep such images in one split"
    ),
    "copies-across": Kind(
        "warning",
        "images of which the other split has a copy",
        "take them out of one split: AP on images that were trained on is too high",
    ),
    "near-copies-across": Kind(
        "warning",
        "images that look like one of the other split",
        "keep them in one split: AP on images that were trained on is too high",
    ),
}
OF_OBJECTS = {
    "annotation-id": Kind("warning", "annotation ids that are no whole numbers", _RENUMBER),
    "annotation-id-twice": Kind("warning", "annotation ids that are there twice", _RENUMBER),
    "annotation-id-0": Kind(
        "warning", "an annotation id of 0, which pycocotools takes for no match", _RENUMBER
    ),
    "id-as-text": Kind(
        "error", "objects whose image_id or category_id is text", "--fix makes numbers of them"
    ),
    "image-id-unknown": Kind(
        "error",
        "objects of an image that the file does not list",
        "list the image; --fix drops the objects",
    ),
    "category-id-unknown": Kind(
        "error",
        "objects of a category that the file does not list",
        "list the category; --fix drops the objects",
    ),
    "box": Kind("error", "boxes that are no four finite numbers", _FROM_MASK),
    "boxes-corners": Kind(
        "error", "boxes that look like x1, y1, x2, y2", "--fix writes x, y, width, height"
    ),
    "boxes-centred": Kind(
        "error",
        "boxes that look like the centre, width and height",
        "--fix writes x, y, width, height",
    ),
    "boxes-relative": Kind(
        "error",
        "boxes that look like parts of the image, from 0 to 1",
        "--fix writes pixels",
    ),
    "box-empty": Kind(
        "warning",
        "boxes of no or negative width or height, which are left out",
        _FROM_MASK,
    ),
    "box-outside": Kind(
        "warning", "boxes outside their image, which are left out", "--fix drops the objects"
    ),
    "box-leaves": Kind("warning", "boxes that leave their image", "--fix cuts them at its edge"),
    "box-not-its-mask": Kind(
        "warning",
        "boxes that have an IoU below 0.5 with their mask's",
        "look at them; --fix takes the mask's",
    ),
    "duplicate": Kind(
        "warning",
        "objects that are there twice (image, class and box)",
        "--fix keeps the first of each",
    ),
    "mask-missing": Kind(
        "error",
        "objects without a segmentation among others that have one",
        "annotate them, or train model=faster_rcnn; --fix drops them",
    ),
    "segmentation": Kind(
        "error",
        "segmentations that are neither a list of polygons nor run lengths",
        "--fix takes them away",
    ),
    "polygon-layout": Kind(
        "error",
        "polygons that are not written as [[x1, y1, x2, y2, ...]]",
        "--fix writes them so",
    ),
    "polygon-numbers": Kind(
        "error", "polygons of something else than finite numbers", "--fix takes them away"
    ),
    "polygon-odd": Kind("error", "polygons of an odd number of numbers", "--fix takes them away"),
    "polygon-short": Kind(
        "warning", "polygons of fewer than three points", "--fix takes them away"
    ),
    "polygon-crosses": Kind(
        "note", "polygons that cross or touch themselves", "what they surround twice may be a hole"
    ),
    "mask-leaves": Kind("warning", "masks that leave their image", "what is outside is not learnt"),
    "mask-empty": Kind("warning", "masks without a pixel", "--fix drops the objects"),
    "rle-size": Kind(
        "error",
        "run lengths of another size than their image",
        "--fix corrects it where the box agrees, or takes them away",
    ),
    "rle-broken": Kind("error", "run lengths that are broken", "--fix takes them away"),
    "crowd": Kind("error", "iscrowd that is neither 0 nor 1", "--fix writes 0 or 1"),
    "area": Kind(
        "note",
        "areas that are missing or no positive number",
        "measured from the mask; --fix writes it",
    ),
    "small": Kind("note", "objects with a side under 4 pixels", "train on larger images"),
    "no-anchor": Kind(
        "note",
        "objects that no anchor reaches at IoU 0.5",
        "train on larger images, or set model.rpn.anchors.sizes and aspect_ratios",
    ),
}
KINDS = _OF_THE_FILE | _OF_CATEGORIES | OF_IMAGES | OF_OBJECTS


@dataclass
class Fault:
    """All faults of one kind."""

    name: str
    severity: Severity
    what: str
    count: int
    places: list[str]
    remedy: str

    def sentence(self) -> str:
        """What, how many, where and what to do."""
        more = ", ..." if self.count > len(self.places) else ""
        where = f" ({', '.join(self.places)}{more})" if self.places else ""
        return f"{self.what}: {self.count:,}{where}; {self.remedy}"


@dataclass
class _Found:
    count: int = 0
    places: list[str] = field(default_factory=list)
    rows: "array[int]" = field(default_factory=lambda: array("q"))
    circumstance: str = ""


class Faults:
    """Faults by kind, with the rows (of images, categories or annotations) that have them."""

    def __init__(self) -> None:
        self._found: dict[str, _Found] = {}

    def add(self, name: str, place: str = "", row: int = -1, *, circumstance: str = "") -> None:
        """Note one fault.

        Args:
            name: a key of `KINDS`.
            place: in the user's words.
            row: of the list that the kind is of.
            circumstance: follows the kind's own words, such as the size that images are trained at.
        """
        found = self._found.setdefault(name, _Found(circumstance=circumstance))
        found.count += 1
        found.rows.append(row)
        if place and len(found.places) < _SHOWN:
            found.places.append(place)

    def add_rows(
        self,
        name: str,
        rows: Iterable[int] | npt.NDArray[np.int64],
        place: Callable[[int], str],
        *,
        circumstance: str = "",
    ) -> None:
        """Note a fault of each row."""
        for row in np.asarray(rows, dtype=np.int64).tolist():
            shown = name in self._found and len(self._found[name].places) >= _SHOWN
            self.add(name, "" if shown else place(row), row, circumstance=circumstance)

    def rows(self, name: str) -> list[int]:
        """Rows with a kind of fault."""
        return self._found[name].rows.tolist() if name in self._found else []

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def found(self) -> list[Fault]:
        """All faults, the worst first."""
        faults = []
        for name, kind in KINDS.items():
            if name in self._found:
                found = self._found[name]
                what = kind.what + found.circumstance
                faults.append(
                    Fault(name, kind.severity, what, found.count, found.places, kind.remedy)
                )
        return sorted(faults, key=lambda fault: SEVERITIES.index(fault.severity))
