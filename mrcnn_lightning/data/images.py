"""Image files as tensors, whatever they hold."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor

from mrcnn_lightning.user_error import UserError

log = logging.getLogger(__name__)

# How many bits of a wider number cameras, scanners and programs use.
_BITS = (8, 10, 12, 14, 16, 24, 31, 32)
_WHITES_OF_FLOATS = (1.0, 255.0, 65535.0)
# TIFF's tags.
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339
_MIN_SAMPLE_VALUE, _MAX_SAMPLE_VALUE, _SMIN_SAMPLE_VALUE, _SMAX_SAMPLE_VALUE = 280, 281, 340, 341
_UNSIGNED = 1
# An image whose brightest byte is below has few of its 16 bits in use.
_DARK = 64


def read_image(path: str | Path, *, size: tuple[int, int] | None = None) -> Tensor:
    """An image file as (3, H, W) uint8 RGB, upright as its EXIF orientation says.

    Grey and palette images become RGB, alpha is dropped. Whole numbers of more than 8 bits and
    floating-point numbers are scaled to 8 bits: by the white that the file names (bits a sample, or
    TIFF's smallest and largest value), else by the least of the usual ones that its values reach:
    8, 10, 12, 14, 16 bits or more; 1, 255 or 65535 where they are floating-point numbers, or else
    their largest. A warning says so of the first such file, but not of one that fills its 16 bits.
    Numbers below zero shift black.

    Args:
        path: of the file.
        size: the height and width that annotations are made for. If only the pixels as stored
            have that size, the annotations are not of the upright image, and neither is the result.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    try:
        with Image.open(path) as file:
            stored = _to_rgb(file, path)
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) != 1
            upright = ImageOps.exif_transpose(stored) if turned else stored
    except UnidentifiedImageError as error:
        raise UserError(f"cannot read the image {path}: not an image") from error
    except Exception as error:  # what Pillow raises for damaged files has no common ancestor
        raise UserError(f"cannot read the image {path}: {error}") from error
    for image in (upright, stored):
        if size is None or (image.height, image.width) == tuple(size):
            pixels: Tensor = pil_to_tensor(image)
            return pixels
    raise UserError(
        f"the image {path} is {upright.width} x {upright.height} pixels, its annotations say "
        f"{size[1]} x {size[0]}"  # type: ignore[index]
    )


def _to_rgb(file: Image.Image, path: str | Path) -> Image.Image:
    has_16_bits = any(";16" in str(part.args) for part in getattr(file, "tile", []))
    file.load()
    if not file.mode.startswith(("I", "F")):
        image = file if file.mode == "RGB" else file.convert("RGB")  # a copy costs time
        # Pillow keeps the upper byte of each channel.
        if has_16_bits and max(high for _, high in image.getextrema()) < _DARK:  # type: ignore[misc]
            _say_once(
                f"{path} has 16 bits a channel of which it uses the lower ones, so that it is "
                "nearly black: scale such images to 8 bits before"
            )
        return image
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = file.getexif().get(ExifTags.Base.Orientation, 1)
    black, white, values = _range(file)
    if not file.mode.startswith("I;16") or (black, white) != (0.0, 65535.0):
        _say_once(
            f"{path} ({file.mode}) has other values than 8 or full 16 bits: {black:g} becomes "
            f"black and {white:g} white; further images are scaled by their own values too (bits "
            "a sample, or TIFF's SMinSampleValue and SMaxSampleValue, say it for all)"
        )
    grey = ((values - black) / (white - black) * 255).clip(0, 255).round().astype(np.uint8)
    image = Image.fromarray(grey).convert("RGB")
    image.info["exif"] = turned.tobytes()
    return image


def _range(file: Image.Image) -> tuple[float, float, npt.NDArray[np.float64]]:
    """Which values of a grey image are black and white, and all its values."""
    tags = getattr(file, "tag_v2", {})
    stored = np.asarray(file)
    bits, kind = (_number(tags, tag) for tag in (_BITS_PER_SAMPLE, _SAMPLE_FORMAT))
    if file.mode == "I" and bits == 32 and kind in (None, _UNSIGNED):
        stored = stored.view(np.uint32)  # which Pillow takes for signed
    values = np.nan_to_num(stored.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    lowest, highest = float(values.min()), float(values.max())
    low = [_number(tags, tag) for tag in (_SMIN_SAMPLE_VALUE, _MIN_SAMPLE_VALUE)]
    high = [_number(tags, tag) for tag in (_SMAX_SAMPLE_VALUE, _MAX_SAMPLE_VALUE)]
    black = next((each for each in low if each is not None and each <= lowest), min(lowest, 0.0))
    said = next((each for each in high if each is not None and each >= highest), None)
    if said is not None and said > black:
        return black, said, values
    if bits is not None and 8 < bits < 16:
        return black, 2.0**bits - 1, values
    if file.mode.startswith("F"):
        white = next((each for each in _WHITES_OF_FLOATS if each / 2 < highest <= each), highest)
        white = 1.0 if highest <= 1 else white
    else:
        white = next((2.0**n - 1 for n in _BITS if highest <= 2.0**n - 1), highest)
    return black, white, values


def _number(tags: Mapping[int, Any], tag: int) -> float | None:
    """What a file says; of the first channel where it has several, None where it is no number."""
    value: Any = tags.get(tag)
    value = value[0] if isinstance(value, tuple) and value else value
    try:
        return None if value is None or isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


_has_said = False


def _say_once(sentence: str) -> None:
    """Tell the user what the first unusual image becomes; one data worker does."""
    global _has_said
    worker = get_worker_info()
    if _has_said or (worker is not None and worker.id > 0):
        return
    _has_said = True
    log.warning("%s", sentence)
