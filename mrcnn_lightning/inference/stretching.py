"""Images of any bands as pictures that eyes can read.

C channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mrcnn_lightning.user_error import UserError

# What is darker or brighter than these shares of a band's pixels is black or white.
_BLACK, _WHITE = 0.02, 0.98
# Of a band, on which the shares are measured.
_MOST_PIXELS = 1_000_000


def as_rgb(image: Tensor, bands: Sequence[int] | None = None) -> Tensor:
    """An image as (3, H, W) uint8 RGB; of other images, bands stretched by their percentiles.

    Args:
        image: (C, H, W); three channels of uint8 are RGB already.
        bands: which become red, green and blue, counted from 1, or one that becomes grey. None is
            the first three, or the first where there are fewer.

    Raises:
        UserError: there are no such bands.
    """
    channels = image.shape[0]
    if bands is None and channels == 3 and image.dtype == torch.uint8:
        return image
    if bands is None:
        bands = [1, 2, 3] if channels >= 3 else [1]
    if len(bands) not in (1, 3) or not all(1 <= band <= channels for band in bands):
        raise UserError(
            f"bands={list(bands)}: a picture wants one or three, between 1 and {channels}"
        )
    picture = torch.stack([_stretched(image[band - 1]) for band in bands])
    return picture.expand(3, -1, -1)


def _stretched(band: Tensor) -> Tensor:
    values = band.float()
    some = values.flatten()
    some = some[:: -(-len(some) // _MOST_PIXELS)].sort().values
    low, high = (some[round(share * (len(some) - 1))] for share in (_BLACK, _WHITE))
    shares = (values - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    return (shares.clamp(0, 1) * 255).round().to(torch.uint8)
