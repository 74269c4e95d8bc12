"""Faults of image files: missing, damaged, of another size, turned, copies of one another.

N images.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mrcnn_lightning.data.bands import stored_image
from mrcnn_lightning.data.checking.entries import Listed, shown
from mrcnn_lightning.data.checking.faults import Faults
from mrcnn_lightning.data.headers import Header, each, header_of

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".npy"}
_OF_BANDS = {".npy", ".tif", ".tiff"}


@dataclass
class ImageFile:
    """What is known of an image's file."""

    path: Path
    header: Header | None = None  # None where it cannot be read
    num_bytes: int = 0
    problem: str = ""  # a kind of fault
    error: str = ""


def look_at(
    folder: str | Path, names: Sequence[str | None], known: dict[Path, ImageFile]
) -> list[ImageFile | None]:
    """Read every file to its end.

    Args:
        folder: that names start from.
        names: (N,), None where an image has none.
        known: files that are not read again; is added to.

    Returns:
        (N,) what each file is, None where an image has no name.
    """
    paths = [None if name is None else Path(folder, name) for name in names]
    new = list(dict.fromkeys(path for path in paths if path is not None and path not in known))
    known.update(zip(new, each(_looked_at, new), strict=True))
    return [None if path is None else known[path] for path in paths]


def _looked_at(path: Path) -> ImageFile:
    found = ImageFile(path)
    try:
        found.num_bytes = path.stat().st_size
        if not path.is_file():
            found.problem = "image-missing"
            return found
    except (OSError, ValueError):
        found.problem = "image-missing"
        return found
    try:
        with Image.open(path) as file:
            found.header = header_of(file)
            # A JPEG is read whole, but only an eighth of its pixels are made.
            file.draft(None, (max(1, file.width // 8), max(1, file.height // 8)))
            file.load()
    except UnidentifiedImageError:
        _look_at_bands(found)
    except Image.DecompressionBombError:  # a right file, perhaps
        found.problem = "image-too-large"
    except Exception as error:  # what Pillow raises for damaged files has no common ancestor
        found.problem = "image-broken" if found.header is None else "image-truncated"
        found.error = str(error)
    return found


def _look_at_bands(found: ImageFile) -> None:
    """Read a file that Pillow does not know: an array of NumPy's, or a TIFF of many bands."""
    found.problem, found.error = "image-broken", "not an image"
    if found.path.suffix.lower() not in _OF_BANDS:
        return
    try:
        image = stored_image(found.path)
        image.read(None)
    except Exception as error:  # as above; memory-mapped arrays may end too early
        found.error = str(error)
        return
    found.problem = found.error = ""
    found.header = Header(list(image.size), 1, image.dtype, has_alpha=False, num_frames=1)


def check_files(
    files: Sequence[ImageFile | None], listed: Listed, folder: str | Path, faults: Faults
) -> None:
    """Compare files with what the json says of them, and find those that it does not name."""
    for row, file in enumerate(files):
        if file is not None:
            for name, more in _faults_of(file, listed.sizes[row].tolist()):
                faults.add(name, f"{listed.image(row)}{more}", row)
    named = {Path(folder, name) for name in listed.names if name is not None}
    for path in found_images(folder):
        if path not in named:
            faults.add("image-unnamed", shown(str(path.relative_to(folder))))
    for first, row in copies(files):
        if listed.names[first] != listed.names[row]:
            faults.add("copies", f"{listed.image(row)} of {listed.image(first)}", row)


def _faults_of(file: ImageFile, size: list[int]) -> Iterator[tuple[str, str]]:
    """Kinds of fault, and what is to be said beside the file's name."""
    header = file.header
    if file.problem:
        yield file.problem, f" ({shown(file.error)})" if file.error else ""
    if header is None or file.problem:
        return
    if 0 not in size and size not in (header.stored, header.upright):
        yield (
            "image-size-differs",
            f" is {header.upright[1]} x {header.upright[0]}, not {size[1]} x {size[0]}",
        )
    if header.orientation > 1:
        tells = header.is_on_its_side and header.stored[0] != header.stored[1]
        yield "image-on-its-side" if tells else "image-turned", f" (EXIF {header.orientation})"
    if header.mode == "deep":
        yield "image-deep", ""
    if header.mode == "CMYK":
        yield "image-cmyk", ""
    if header.has_alpha:
        yield "image-alpha", ""
    if header.num_frames > 1:
        yield "image-animated", f" ({header.num_frames} frames)"


def found_images(folder: str | Path) -> Iterator[Path]:
    """The image files in a folder at any depth, by their names."""
    for parent, _, names in os.walk(folder):
        for name in sorted(names):
            if Path(name).suffix.lower() in _SUFFIXES and not name.startswith("."):
                yield Path(parent, name)


def copies(files: Sequence[ImageFile | None]) -> Iterator[tuple[int, int]]:
    """Pairs of the first file of some content, and another one of the same."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for row, file in enumerate(files):
        if file is not None and file.num_bytes:
            by_size[file.num_bytes].append(row)
    candidates = [row for rows in by_size.values() if len(rows) > 1 for row in rows]
    digests = each(_digest, [files[row].path for row in candidates])  # type: ignore[union-attr]
    first: dict[bytes, int] = {}
    for row, digest in sorted(zip(candidates, digests, strict=True)):
        if digest and first.setdefault(digest, row) != row:
            yield first[digest], row


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return b""
