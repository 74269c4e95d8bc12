"""Annotated images as every format can be read into, and written from.

P points of a polygon; H and W of the image.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pycocotools.mask
import yaml
from PIL import ExifTags, Image

from mrcnn_lightning.data.segmentations import Shape, encode_polygons
from mrcnn_lightning.user_error import UserError

Mask = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]

# In pixels: the memory that pycocotools takes for a polygon grows with it.
_FARTHEST = 1e5
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
IMAGE_ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass
class LabeledObject:
    """An object of one image, in pixels."""

    class_name: str
    box: tuple[float, float, float, float]  # x, y, width, height
    shape: Shape | None = None  # polygons [x1, y1, ...], or compressed run lengths
    is_crowd: bool = False

    def rle(self, size: tuple[int, int]) -> dict[str, Any] | None:
        """Its run lengths in an image of a height and a width, None if it is only a box."""
        if self.shape is None:
            return None
        if isinstance(self.shape, bytes):
            return {"size": list(size), "counts": self.shape}
        return encode_polygons([np.asarray(polygon) for polygon in self.shape], size)

    def mask(self, size: tuple[int, int]) -> Mask | None:
        """Its pixels (H, W), zeros and ones, None if it is only a box."""
        rle = self.rle(size)
        return None if rle is None else np.asarray(pycocotools.mask.decode(rle))


@dataclass
class LabeledImage:
    """An image's file, relative to the folder of images, and what is on it."""

    file_name: str
    width: int
    height: int
    objects: list[LabeledObject] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not (0 < self.width < 2**16 and 0 < self.height < 2**16):
            raise UserError(
                f"the image {self.file_name} is annotated as {self.width} x {self.height} pixels: "
                "correct its size"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


@dataclass
class ImageSet:
    """Annotated images of a set, the names of its classes in their order, and what was lost."""

    class_names: list[str]
    images: list[LabeledImage]
    notes: Counter[str] = field(default_factory=Counter)  # what is not as it was, and how often

    def objects(self) -> Iterator[tuple[LabeledImage, LabeledObject]]:
        """Every object with its image."""
        return ((image, each) for image in self.images for each in image.objects)


def polygon_object(class_name: str, polygons: list[Points], *, is_crowd: bool) -> LabeledObject:
    """An object of polygons (P, 2), boxed by their points.

    Raises:
        UserError: one has fewer than three points, or one far out; without its place.
    """
    for points in polygons:
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
            raise UserError("is a polygon of fewer than three points (x, y): draw it anew")
        if not (np.abs(points) <= _FARTHEST).all():
            raise UserError("has a point far out of its image, or none at all: draw it anew")
    every = np.concatenate(polygons)
    (x1, y1), (x2, y2) = every.min(axis=0).tolist(), every.max(axis=0).tolist()
    shape: Shape = [points.ravel().tolist() for points in polygons]
    return LabeledObject(class_name, (x1, y1, x2 - x1, y2 - y1), shape, is_crowd)


def box_object(
    class_name: str, x1: float, y1: float, x2: float, y2: float, *, is_crowd: bool = False
) -> LabeledObject:
    """An object of which only a box is known.

    Raises:
        UserError: it has no area, or one that is no number; without its place.
    """
    width, height = float(x2 - x1), float(y2 - y1)
    if not (0 < width < np.inf and 0 < height < np.inf):
        raise UserError("is a box without an area: draw it anew, or remove it")
    return LabeledObject(class_name, (float(x1), float(y1), width, height), None, is_crowd)


def corners_of(labeled: LabeledObject) -> Points:
    """The corners (4, 2) of an object's box, clockwise."""
    x, y, width, height = labeled.box
    return np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])


def mask_object(class_name: str, mask: npt.NDArray[Any], *, is_crowd: bool) -> LabeledObject | None:
    """An object of the pixels (H, W) that are not zero, None if all are."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    x, y, width, height = pycocotools.mask.toBbox(rle).tolist()
    if width == 0:
        return None
    return LabeledObject(class_name, (x, y, width, height), rle["counts"], is_crowd)


def crop_of(mask: Mask) -> tuple[int, int, Mask]:
    """Where the pixels of a mask (H, W) begin, y and x, and the part that holds them all.

    One pixel of the background if there are none.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, mask[:1, :1]
    top, left = int(rows[0]), int(columns[0])
    return top, left, mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]


def ellipse(center: Points, radii: Points, *, turned: float = 0.0) -> Points:
    """A polygon of 64 points on an ellipse, turned clockwise by an angle in radians."""
    angles = np.arange(64) * (2 * np.pi / 64)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    cos, sin = np.cos(turned), np.sin(turned)
    return np.asarray(center + points @ np.array([[cos, sin], [-sin, cos]]))


def class_names_of(images: Iterable[LabeledImage]) -> list[str]:
    """The classes that objects have, in the order of their names."""
    return sorted({each.class_name for image in images for each in image.objects})


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        UserError: it is not in UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8: save it as such") from error


def require_xml(image_set: ImageSet) -> None:
    """Refuse names that no XML file can hold.

    Raises:
        UserError: a class or a file has a control character, say, in its name.
    """
    for what, names in (
        ("class", image_set.class_names),
        ("file", [image.file_name for image in image_set.images]),
    ):
        for name in names:
            if wrong := _NOT_XML.search(name):
                raise UserError(
                    f"the name of the {what} {name!r} has {wrong[0]!r}, which XML cannot hold: "
                    "rename it, or choose another format"
                )


def read_yaml(file: Path) -> dict[Any, Any]:
    """The keys and values of a yaml file.

    Raises:
        UserError: it is none.
    """
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise UserError(f"{file} is no yaml file: {said}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} has no lines `key: value`")
    return content


def read_values(file: Path | BinaryIO, name: str) -> npt.NDArray[np.integer[Any]]:
    """The values (H, W) of a grey or palette image, as they are stored.

    Raises:
        UserError: it is missing, none that can be read, or has colours.
    """
    try:
        with Image.open(file) as opened:
            values = np.asarray(opened)
    except Exception as error:  # what Pillow raises for damaged files has no common ancestor
        raise UserError(f"{name} is missing or no image that can be read: mend it") from error
    if values.ndim != 2:
        raise UserError(f"{name} has colours, a mask has one number a pixel: save it as grey")
    return values.astype(np.uint8) if values.dtype == np.bool_ else values


def image_files(folder: Path) -> list[str]:
    """The images in a folder and in those in it, by their names relative to it, in order."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_ENDINGS and path.is_file()
    )


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image's file as it is shown: upright, as its EXIF orientation says.

    Raises:
        UserError: it is missing or no image.
    """
    try:
        with Image.open(path) as file:
            is_on_its_side = file.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
            return (file.width, file.height) if is_on_its_side else (file.height, file.width)
    except FileNotFoundError as error:
        raise UserError(
            f"there is no image {path}, whose size is needed: give the folder that it is in"
        ) from error
    except Exception as error:  # what Pillow raises for damaged files has no common ancestor
        raise UserError(f"{path} is no image that can be read: mend or remove it") from error


def stems(image_set: ImageSet) -> dict[str, LabeledImage]:
    """Images by their names without ending, after which files of annotations are called.

    Raises:
        UserError: two images would share a file, or one would lie out of its folder.
    """
    found: dict[str, LabeledImage] = {}
    for image in image_set.images:
        path = PurePosixPath(image.file_name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{image.file_name} leads out of the folder of images: rename it")
        other = found.setdefault(path.with_suffix("").as_posix(), image)
        if other is not image:
            raise UserError(
                f"{other.file_name} and {image.file_name} would have one file of annotations: "
                "rename one of them"
            )
    return found
