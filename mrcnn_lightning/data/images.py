"""Image files as tensors, whatever they hold."""

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor


def read_image(path: str | Path, *, size: tuple[int, int] | None = None) -> Tensor:
    """An image file as (3, H, W) uint8 RGB, upright as its EXIF orientation says.

    Grey and palette images become RGB, alpha is dropped, 16 bits are scaled to 8.

    Args:
        path: of the file.
        size: the height and width that annotations are made for. If only the pixels as stored
            have that size, the annotations are not of the upright image, and neither is the result.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    try:
        with Image.open(path) as file:
            stored = _to_rgb(file)
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


def _to_rgb(file: Image.Image) -> Image.Image:
    file.load()
    if file.mode == "RGB":
        return file  # a copy costs as much as a fifth of decoding
    if not file.mode.startswith("I"):
        return file.convert("RGB")
    exif = file.getexif()
    grey = Image.fromarray((np.asarray(file) / 257).clip(0, 255).round().astype(np.uint8))
    image = grey.convert("RGB")
    image.info["exif"] = exif.tobytes()
    return image
