"""Random sizes, quarter turns, crops, and large-scale jitter to the pixel as Detectron2 has it.

All take an image (C, H, W), or an image and its points.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv_functional

from mrcnn_lightning.data.points import Points
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


class RandomRotation90:
    """Turns by 0, 1, 2 or 3 quarter turns, as likely; height and width may change places."""

    def __call__(self, *parts: Tensor) -> Any:
        """The parts, turned."""
        angle = 90.0 * int(torch.randint(4, ()))
        return _one_or_all([tv_functional.rotate(part, angle, expand=True) for part in parts])


class RandomCropAroundObject:
    """Cuts a part of random size in which the middle of an object lies, drawn at random.

    As Detectron2's `gen_crop_transform_with_instance`; an image without objects is cut anywhere.

    Args:
        size_range: the least and the greatest part of the height and of the width, each drawn by
            itself.

    Raises:
        UserError: they are no parts.
    """

    def __init__(self, *, size_range: Sequence[float]) -> None:
        if len(size_range) != 2 or not 0 < size_range[0] <= size_range[1] <= 1:
            raise UserError(
                f"size_range={list(size_range)} of RandomCropAroundObject is not two parts of an "
                "image, the lesser first: 0 < a <= b <= 1"
            )
        self.size_range = size_range

    def __call__(self, image: Tensor, points: Points) -> tuple[Tensor, Tensor]:
        """The part of the image, and its points."""
        low, high = self.size_range
        whole = torch.tensor(image.shape[1:])
        size = (whole * (low + (high - low) * torch.rand(2))).round().long().clamp(min=1)
        first, last = torch.zeros(2, dtype=torch.int64), whole - size
        if points.num_boxes:
            x1, y1, x2, y2 = points.boxes()[int(torch.randint(points.num_boxes, ()))]
            middle = torch.stack([y1 + y2, x1 + x2]).div(2).long().clamp(min=first, max=whole - 1)
            first, last = (middle + 1 - size).clamp(min=first), last.minimum(middle)
        start = first + (torch.rand(2) * (last - first + 1)).long()
        window = [*start.tolist(), *size.tolist()]
        return tv_functional.crop(image, *window), tv_functional.crop(points, *window)
