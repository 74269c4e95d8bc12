"""Random sizes and large-scale jitter, to the pixel as Detectron2 has them.

All take an image (C, H, W), or an image and its points.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv_functional

from mrcnn_lightning.data.sizing import Resize
from mrcnn_lightning.user_error import UserError


def _one_or_all(parts: list[Any]) -> Any:
    return parts if len(parts) > 1 else parts[0]


class RandomShorterSide:
    """Resizes to one of several sizes, drawn at random, by the rule that evaluation has too.

    Args:
        rule: of the new height and width, see `Resize`.
        min_size: the shorter sides to choose from, in pixels.
        max_size: the longest side.

    Raises:
        UserError: there is nothing to choose from.
    """

    def __init__(
        self,
        *,
        rule: Callable[[tuple[int, int], int, int], tuple[int, int]],
        min_size: int | Sequence[int],
        max_size: int,
    ) -> None:
        sides = [min_size] if isinstance(min_size, int) else min_size
        if not sides:
            raise UserError("data.train_transforms: min_size=[] has no shorter side to choose from")
        self.choices = [Resize(rule=rule, min_size=side, max_size=max_size) for side in sides]

    def __call__(self, *parts: Tensor) -> Any:
        """The parts, resized."""
        return self.choices[int(torch.randint(len(self.choices), ()))](*parts)


class RandomScale:
    """Resizes to fit a square of a random size (Ghiasi et al. 2021; Detectron2's ResizeScale).

    Args:
        side: of the square at scale 1, in pixels.
        scale_range: the least and the greatest scale.
    """

    def __init__(self, *, side: int, scale_range: Sequence[float]) -> None:
        self.side = side
        self.scale_range = scale_range

    def __call__(self, *parts: Tensor) -> Any:
        """The parts, resized; sides are rounded."""
        low, high = self.scale_range
        scale = low + (high - low) * float(torch.rand(()))
        height, width = parts[0].shape[1:]
        factor = self.side * scale / max(height, width)
        size = [max(1, round(height * factor)), max(1, round(width * factor))]
        return _one_or_all([tv_functional.resize(part, size) for part in parts])


class RandomSquare:
    """Cuts a square from a random place, or pads right and below (Detectron2's FixedSizeCrop).

    Args:
        side: in pixels.
        fill: the padding's number (0 to 255 for RGB), which is then normalised as the image is.
    """

    def __init__(self, *, side: int, fill: int) -> None:
        self.side = side
        self.fill = fill

    def __call__(self, *parts: Tensor) -> Any:
        """The parts in the square; one random number says how far right and down it lies."""
        sizes = tuple(parts[0].shape[1:])
        place = float(torch.rand(()))
        top, left = (round(place * max(0, size - self.side)) for size in sizes)
        height, width = (min(size, self.side) for size in sizes)
        cut = [tv_functional.crop(part, top, left, height, width) for part in parts]
        room = [0, 0, self.side - width, self.side - height]
        return _one_or_all([tv_functional.pad(part, room, fill=self.fill) for part in cut])
