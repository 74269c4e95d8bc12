"""Image files compared with their annotations before hours are spent: there, images, of that size.

N images.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from PIL import ExifTags, Image, UnidentifiedImageError

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.bands import RGB, ImageFormat, stored_image
from mrcnn_lightning.user_error import UserError

_THREADS = 8
_PER_TASK = 256
_SHOWN = 5
# Orientations in EXIF that exchange height and width.
_ON_ITS_SIDE = range(5, 9)
# Formats in which several frames are an animation, not pages.
_ANIMATED = ("GIF", "PNG", "WEBP")

_T = TypeVar("_T")
_Result = TypeVar("_Result")


def check_images(
    annotations: Annotations,
    *,
    images: tuple[str, str],
    json: str,
    cache_dir: str | Path,
    image_format: ImageFormat = RGB,
) -> None:
    """Compare every image's header with its annotations, unless it was done for the same files.

    Args:
        annotations: of N images.
        images: the key in the configuration of the folder of images, and the folder.
        json: the annotations' key and file, for the message.
        cache_dir: where it is noted that a set of files (names, sizes in bytes, times of change)
            is right.
        image_format: of all images.

    Raises:
        UserError: files are missing, are no images, or have other sizes than annotated or
            another format; or the cache cannot be written to.
    """
    key, folder = images
    names = [annotations.file_name(index) for index in range(len(annotations))]
    paths = [Path(folder, name) for name in names]
    states = each(_state, paths)
    missing = [name for name, state in zip(names, states, strict=True) if state is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(names)} images are missing from {key}={folder}: "
            f"{_some(missing)}"
        )
    sizes = annotations.image_sizes.tolist()
    kind = [] if image_format.is_rgb else [tuple(image_format)]
    content = repr([names, sizes, states, *kind]).encode()
    checked = Path(cache_dir).expanduser() / f"{hashlib.blake2b(content).hexdigest()[:32]}.checked"
    if checked.exists():
        return
    try:
        with FileLock(checked.with_suffix(".lock")):  # one process of a machine looks
            if checked.exists():
                return
            found = each(partial(_problem, image_format), list(zip(paths, sizes, strict=True)))
            problems = [problem for problem in found if problem is not None]
            if problems:
                raise UserError(
                    f"{len(problems)} of {len(names)} images of {key}={folder} are not as {json} "
                    f"says (correct its width and height, or leave them out): {_some(problems)}"
                )
            checked.touch()
    except OSError as error:
        raise UserError(
            f"data.cache_dir={cache_dir} cannot be written to, give another: {error}"
        ) from error


def each(function: Callable[[_T], _Result], values: Sequence[_T]) -> list[_Result]:
    """A function's results for all values; threads wait for the files."""
    parts = [values[start : start + _PER_TASK] for start in range(0, len(values), _PER_TASK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        done = threads.map(lambda part: [function(value) for value in part], parts)
        return [result for part in done for result in part]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except (OSError, ValueError):  # a name may hold what no file's can
        return None
    return state.st_size, state.st_mtime_ns


@dataclass
class Header:
    """What an image file says of itself."""

    stored: list[int]  # height and width of the pixels as they are stored
    orientation: int  # EXIF's, 1 to 8
    mode: str  # Pillow's
    has_alpha: bool
    num_frames: int

    @property
    def upright(self) -> list[int]:
        """Height and width as they are meant to be seen."""
        return self.stored[::-1] if self.is_on_its_side else self.stored

    @property
    def is_on_its_side(self) -> bool:
        """Whether EXIF exchanges height and width."""
        return self.orientation in _ON_ITS_SIDE


def header_of(file: Image.Image) -> Header:
    """What an opened file says of itself."""
    is_deep = file.mode.startswith(("I", "F")) or any(
        ";16" in str(part.args) for part in getattr(file, "tile", [])
    )
    return Header(
        stored=[file.height, file.width],
        orientation=_orientation(file),
        mode="deep" if is_deep else file.mode,
        has_alpha=file.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in file.info,
        num_frames=int(getattr(file, "n_frames", 1)) if file.format in _ANIMATED else 1,
    )


def _orientation(file: Image.Image) -> int:
    value = file.getexif().get(ExifTags.Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _problem(image_format: ImageFormat, path_and_size: tuple[Path, list[int]]) -> str | None:
    """What is wrong with a file; see `read_image` for which size it may have."""
    path, size = path_and_size
    if not image_format.is_rgb or path.suffix.lower() == ".npy":
        return _problem_of_bands(image_format, path, size)
    try:
        with Image.open(path) as file:
            stored = upright = [file.height, file.width]
            if stored != size:  # only then EXIF is worth its time
                upright = header_of(file).upright
    except UnidentifiedImageError:
        return f"{path.name} is not an image"
    except Exception as error:  # what Pillow raises for damaged files has no common ancestor
        return f"{path.name} cannot be read ({error})"
    if size in (stored, upright):
        return None
    return f"{path.name} is {upright[1]} x {upright[0]} pixels, annotated as {size[1]} x {size[0]}"


def _problem_of_bands(image_format: ImageFormat, path: Path, size: list[int]) -> str | None:
    try:
        stored = stored_image(path)
        image_format.require(stored, path)
    except UserError as error:
        return str(error)
    height, width = stored.size
    if [height, width] == size:
        return None
    return f"{path.name} is {width} x {height} pixels, annotated as {size[1]} x {size[0]}"


def _some(parts: Sequence[str]) -> str:
    return ", ".join(parts[:_SHOWN]) + (", ..." if len(parts) > _SHOWN else "")
