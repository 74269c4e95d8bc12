"""Image files as tensors, whatever they hold."""

import logging
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms.v2.functional import pil_to_tensor

log = logging.getLogger(__name__)

# How many bits of a wider number cameras, scanners and programs use.
_BITS = (8, 10, 12, 14, 16, 24, 31, 32)
_WHITES_OF_FLOATS = (1.0, 255.0, 65535.0)
# TIFF's tags.
_BITS_PER_SAMPLE, _SMAX_SAMPLE_VALUE, _MAX_SAMPLE_VALUE = 258, 341, 281


def read_image(path: str | Path, *, size: tuple[int, int] | None = None) -> Tensor:
    """An image file as (3, H, W) uint8 RGB, upright as its EXIF orientation says.

    Grey and palette images become RGB, alpha is dropped. Whole numbers of more than 8 bits and
    floating-point numbers are scaled to 8 bits: by the white that the file names (bits a sample,
    or TIFF's largest value), else by the least of the usual ones that its values reach: 8, 10, 12,
    14, 16 bits or more; 1, 255 or 65535 where they are floating-point numbers. A warning says so
    of the first such file, but not of one that fills its 16 bits. Numbers below zero shift black.

    Args:
        path: of the file.
        size: the height and width that annotations are made for. If only the pixels as stored
            have that size, the annotations are not of the upright image, and neither is the result.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    try:
        with Image.open(path) as file:
            stored = _to_rgb(file, path)
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) != 1
            upright = ImageOps.exif_transpose(stored) if turned else stored
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read the image {path}: not an image") from error
    except Exception as error:  # what Pillow raises for damaged files has no common ancestor
        raise ValueError(f"cannot read the image {path}: {error}") from error
    for image in (upright, stored):
        if size is None or (image.height, image.width) == tuple(size):
            return pil_to_tensor(image)
    raise ValueError(
        f"the image {path} is {upright.width} x {upright.height} pixels, its annotations say "
        f"{size[1]} x {size[0]}"  # type: ignore[index]
    )


def _to_rgb(file: Image.Image, path: str | Path) -> Image.Image:
    file.load()
    if file.mode == "RGB":
        return file  # a copy costs as much as a fifth of decoding
    if not file.mode.startswith(("I", "F")):
        return file.convert("RGB")
    exif = file.getexif()
    values = np.nan_to_num(np.asarray(file, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    black, white = min(values.min(), 0.0), _white(file, values.max())
    if not file.mode.startswith("I;16") or (black, white) != (0.0, 65535.0):
        _say_once(f"{path} ({file.mode})", black, white)
    grey = ((values - black) / (white - black) * 255).clip(0, 255).round().astype(np.uint8)
    image = Image.fromarray(grey).convert("RGB")
    image.info["exif"] = exif.tobytes()
    return image


def _white(file: Image.Image, highest: float) -> float:
    """Which value of a grey image is white, at least `highest`."""
    tags = getattr(file, "tag_v2", {})
    for tag in (_SMAX_SAMPLE_VALUE, _MAX_SAMPLE_VALUE):
        said = tags.get(tag, 0)
        said = said[0] if isinstance(said, tuple) else said
        if said > 0 and said >= highest:
            return float(said)
    if file.mode.startswith("F"):
        whites = list(_WHITES_OF_FLOATS)
    else:
        whites = [2.0**bits - 1 for bits in _BITS]
        stored = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        if 8 < stored < 16:
            return 2.0**stored - 1
    return next((white for white in whites if white >= highest), highest)


_has_said = False


def _say_once(what: str, black: float, white: float) -> None:
    """Tell the user how the first image of unusual values is scaled; one data worker does."""
    global _has_said
    worker = get_worker_info()
    if _has_said or (worker is not None and worker.id > 0):
        return
    _has_said = True
    log.warning(
        "%s has other values than 8 or full 16 bits: %g becomes black and %g white; further images "
        "are scaled by their own values too (bits, or TIFF's SMaxSampleValue, say it for all)",
        what,
        black,
        white,
    )
