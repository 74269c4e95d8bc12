"""Mean and deviation of each band over a set's images.

C channels.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from mrcnn_lightning.data.bands import ImageFormat
from mrcnn_lightning.user_error import UserError


def band_statistics(
    paths: Iterable[str | Path], image_format: ImageFormat
) -> tuple[list[float], list[float]]:
    """Mean and deviation of each band over all pixels, one image in memory at a time.

    Images are put together by Chan, Golub and LeVeque's update (1983), in float64, so that large
    numbers lose no digits to one another.

    Args:
        paths: of the files.
        image_format: of all of them.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    count, mean, squares = 0, torch.zeros(image_format.channels).double(), torch.zeros(()).double()
    for path in paths:
        values: Tensor = image_format.read(path).flatten(1).double()  # (C, pixels)
        num, own = values.shape[1], values.mean(dim=1)
        off = own - mean
        squares = squares + (values - own[:, None]).square().sum(dim=1)
        squares = squares + off.square() * (count * num / (count + num))
        mean = mean + off * (num / (count + num))
        count += num
    if count == 0:
        raise UserError("there is no image to measure")
    return mean.tolist(), (squares / count).sqrt().tolist()
