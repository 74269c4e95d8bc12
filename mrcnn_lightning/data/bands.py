"""Image files of any number of bands, with the numbers that they hold.

C channels. Whole images are read here; `images` reads RGB of 8 bits, which most images are.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mrcnn_lightning.data.images import read_image
from mrcnn_lightning.user_error import UserError

DType = Literal["uint8", "uint16", "float32"]
MOST_CHANNELS = 16
# Kinds of Pillow's that hold a file's numbers as they are.
_MODES: dict[str, tuple[int, DType]] = {
    "L": (1, "uint8"),
    "RGB": (3, "uint8"),
    "RGBA": (4, "uint8"),
    "I;16": (1, "uint16"),
    "I;16B": (1, "uint16"),
    "F": (1, "float32"),
}
# TIFF's tags, and values of the first.
_PHOTOMETRIC, _SAMPLES_PER_PIXEL = 262, 277
_BLACK_IS_ZERO, _RGB_PHOTOMETRIC = 1, 2
# A place of an image: top, left, height, width.
Window = tuple[int, int, int, int]


class StoredImage(NamedTuple):
    """What a file says of its image."""

    channels: int
    dtype: str  # NumPy's name
    size: tuple[int, int]  # height, width
    read: Callable[[Window | None], npt.NDArray[Any]]  # (H, W, C) or (H, W), of a window or all


class ImageFormat(NamedTuple):
    """What all images of a set hold.

    Three channels of uint8 are RGB, which any image becomes (grey, palettes, more bits; upright by
    EXIF). Others are taken as they are stored: their number and kind must be these.
    """

    channels: int = 3
    dtype: DType = "uint8"

    @property
    def is_rgb(self) -> bool:
        """Whether images are ordinary ones."""
        return self.channels == 3 and self.dtype == "uint8"

    def require_known(self) -> None:
        """Look at the two values.

        Raises:
            UserError: there is no such number or kind.
        """
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise UserError(f"data.channels={self.channels} is not between 1 and {MOST_CHANNELS}")
        if self.dtype not in get_args(DType):
            raise UserError(f"data.dtype={self.dtype} is not one of {', '.join(get_args(DType))}")

    def read(self, path: str | Path, *, size: tuple[int, int] | None = None) -> Tensor:
        """A file's image (C, H, W): uint8, or float32 for the others.

        torch resizes no uint16, and float32 holds all its numbers; what is not a number becomes 0.

        Args:
            path: of the file.
            size: the height and width that annotations are made for.

        Raises:
            UserError: names the file and what is wrong with it.
        """
        if self.is_rgb and Path(path).suffix.lower() != ".npy":
            return read_image(path, size=size)
        stored = stored_image(path)
        self.require(stored, path)
        if size is not None and stored.size != tuple(size):
            raise UserError(
                f"the image {path} is {stored.size[1]} x {stored.size[0]} pixels, its annotations "
                f"say {size[1]} x {size[0]}"
            )
        try:
            return as_tensor(stored.read(None))
        except Exception as error:  # what readers raise for damaged files has no common ancestor
            raise UserError(f"cannot read the image {path}: {error}") from error

    def require(self, stored: StoredImage, path: str | Path) -> None:
        """Compare a file's kind with what all are to hold.

        Raises:
            UserError: it is another.
        """
        if (stored.channels, stored.dtype) != tuple(self):
            raise UserError(
                f"the image {path} has {stored.channels} channels of {stored.dtype}, and "
                f"data.channels={self.channels} data.dtype={self.dtype}: `mrcnn data stats` prints "
                "what to set"
            )


RGB = ImageFormat()


def as_tensor(values: npt.NDArray[Any]) -> Tensor:
    """An image (H, W, C) or (H, W) as (C, H, W), uint8 or float32, whose channels lie together."""
    values = values[..., None] if values.ndim == 2 else values
    if values.dtype == np.uint8:
        return torch.from_numpy(np.array(values, order="C")).permute(2, 0, 1)
    numbers = values.astype(np.float32, order="C")
    np.nan_to_num(numbers, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return torch.from_numpy(numbers).permute(2, 0, 1)


def stored_image(path: str | Path) -> StoredImage:
    """What a file holds: NumPy's by itself, others by Pillow, or else by rasterio.

    Raises:
        UserError: it cannot be read, or only by rasterio, which is not installed.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".npy":
            return _of_array(np.load(path, mmap_mode="r", allow_pickle=False))
        return _of_pillow(path) or of_rasterio(path)
    except UserError:
        raise
    except Exception as error:  # what readers raise for damaged files has no common ancestor
        raise UserError(f"cannot read the image {path}: {error}") from error


def _cut(values: npt.NDArray[Any], window: Window | None) -> npt.NDArray[Any]:
    if window is None:
        return values
    top, left, height, width = window
    return values[top : top + height, left : left + width]


def _of_array(array: npt.NDArray[Any]) -> StoredImage:
    """Of an array (H, W), (H, W, C) or (C, H, W): an image has fewer channels than rows."""
    if array.ndim not in (2, 3):
        raise ValueError(f"an image has two axes or three, this array {array.ndim}")
    if array.ndim == 3 and array.shape[2] > MOST_CHANNELS >= array.shape[0]:
        array = array.transpose(1, 2, 0)
    channels = 1 if array.ndim == 2 else array.shape[2]
    size = (array.shape[0], array.shape[1])
    return StoredImage(channels, array.dtype.name, size, lambda window: _cut(array, window))


def _of_pillow(path: Path) -> StoredImage | None:
    """Of an image that Pillow reads without changing its numbers, or None."""
    try:
        with Image.open(path) as file:
            if file.format == "TIFF" and not _is_whole(file.tag_v2, len(file.getbands())):  # type: ignore[attr-defined]
                return None
            has_16_bits = any(";16" in str(part.args) for part in getattr(file, "tile", []))
            mode, size = file.mode, (file.height, file.width)
    except UnidentifiedImageError:
        return None
    if mode not in _MODES or (has_16_bits and not mode.startswith("I;16")):
        return None

    def read(window: Window | None) -> npt.NDArray[Any]:
        with Image.open(path) as file:
            return _cut(np.asarray(file), window)

    return StoredImage(*_MODES[mode], size, read)


def _is_whole(tags: Mapping[int, Any], num_bands: int) -> bool:
    """Whether Pillow gives a TIFF's numbers as they are; it drops bands and inverts some greys."""
    is_plain = tags.get(_PHOTOMETRIC) in (_BLACK_IS_ZERO, _RGB_PHOTOMETRIC)
    return is_plain and tags.get(_SAMPLES_PER_PIXEL, 1) == num_bands in (1, 3)


def of_rasterio(path: Path) -> StoredImage:
    """What rasterio finds in a file, which it reads by window.

    Raises:
        UserError: it is not installed, or cannot read it.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
    except ImportError as error:
        raise UserError(
            f"the image {path} is none that NumPy or Pillow read as it is: rasterio reads more "
            '(pip install "mrcnn-lightning[geo]")'
        ) from error
    # Few images know where on Earth they lie. Threads share one filter.
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

    def read(window: Window | None) -> npt.NDArray[Any]:
        place = None
        if window is not None:
            top, left, height, width = window
            place = rasterio.windows.Window(left, top, width, height)
        with rasterio.open(path) as file:
            values: npt.NDArray[Any] = file.read(window=place)  # (C, h, w)
        return values.transpose(1, 2, 0)

    try:
        with rasterio.open(path) as file:
            kinds = " and ".join(sorted(set(file.dtypes)))
            return StoredImage(file.count, kinds, (file.height, file.width), read)
    except RasterioIOError as error:
        raise UserError(f"cannot read the image {path}: not an image ({error})") from error
