"""How large the network sees an image, and where the image lies on its batch's canvas.

B images.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv_functional

from mrcnn_lightning.user_error import UserError


class Canvas(Protocol):
    """Has room for the images of a batch."""

    def size(self, sizes: Tensor) -> Tensor:
        """The canvas's height and width for images of some height and width, both (..., 2)."""

    def origins(self, sizes: Tensor, canvas: Tensor) -> Tensor:
        """Where on a canvas (2,) the left upper corners x, y of images of sizes (B, 2) are."""


class Resize:
    """Resizes images, and their points with them.

    Args:
        rule: of the new height and width, one of the functions below.
        min_size: the shorter side, in pixels, unless the longer would pass `max_size`.
        max_size: the longest side.

    Raises:
        UserError: the shorter side is less than 1, or over the longest.
    """

    def __init__(
        self,
        *,
        rule: Callable[[tuple[int, int], int, int], tuple[int, int]],
        min_size: int,
        max_size: int,
    ) -> None:
        if not 1 <= min_size <= max_size:
            raise UserError(
                f"min_size={min_size} max_size={max_size}: the shorter side must be 1 or more, and "
                "no more than the longest"
            )
        self.rule = rule
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, *parts: Tensor) -> Any:
        """An image (3, H, W), or an image and its points."""
        size = self.size((parts[0].shape[1], parts[0].shape[2]))
        resized = tuple(tv_functional.resize(part, list(size)) for part in parts)
        return resized if len(resized) > 1 else resized[0]

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image that had this height and width."""
        return self.rule(size, self.min_size, self.max_size)


def shorter_side(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """The shorter side becomes `min_size`, the longer is cut to whole pixels (torchvision).

    480 x 640 becomes 800 x 1066.
    """
    short, long = min(size), max(size)
    new_short, new_long = min_size, int(min_size * long / short)
    if new_long > max_size:
        new_short, new_long = max(1, int(max_size * short / long)), max_size
    return (new_short, new_long) if size[0] <= size[1] else (new_long, new_short)


def shorter_side_rounded(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """The shorter side becomes `min_size`, the longer is rounded to whole pixels (Detectron2).

    480 x 640 becomes 800 x 1067.
    """
    scale = min(min_size / min(size), max_size / max(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def enlarged(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """The shorter side grows to `min_size`; larger images keep their size (Matterport's).

    One with a side over `max_size` shrinks to that.
    """
    scale = max(1.0, min_size / min(size))
    if round(max(size) * scale) > max_size:
        scale = max_size / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


class PadToMultiple:
    """The smallest canvas with sides of whole multiples; images lie in its left upper corner.

    Args:
        multiple: in pixels, the largest stride of the model.

    Raises:
        UserError: it is less than 1.
    """

    def __init__(self, *, multiple: int) -> None:
        if multiple < 1:
            raise UserError(f"data.canvas.multiple={multiple} is less than 1")
        self.multiple = multiple

    def size(self, sizes: Tensor) -> Tensor:
        """The canvas's height and width for images of some height and width, both (..., 2)."""
        return (sizes + self.multiple - 1) // self.multiple * self.multiple

    def origins(self, sizes: Tensor, canvas: Tensor) -> Tensor:
        """Where on a canvas (2,) the left upper corners x, y of images of sizes (B, 2) are."""
        return torch.zeros_like(sizes)


class FixedSizes:
    """The smallest of a few canvases; images lie in its left upper corner.

    Args:
        sizes: height and width of each.

    Raises:
        UserError: there is none, or one without area.
    """

    def __init__(self, *, sizes: Sequence[tuple[int, int]]) -> None:
        if not sizes or any(len(size) != 2 or min(size) < 1 for size in sizes):
            raise UserError(
                f"data.canvas.sizes={sizes}: give the height and width of one canvas or more, "
                "[[800,1344],[1344,800]]"
            )
        self.sizes = torch.tensor(sorted(sizes, key=math.prod))  # (number of canvases, 2)

    def size(self, sizes: Tensor) -> Tensor:
        """The canvas's height and width for images of some height and width, both (..., 2).

        Raises:
            UserError: an image is larger than all.
        """
        fits = (sizes[..., None, :] <= self.sizes).all(-1)  # (..., number of canvases)
        if not fits.any(-1).all():
            height, width = sizes[~fits.any(-1)].reshape(-1, 2)[0].tolist()
            raise UserError(
                f"data.canvas.sizes={self.sizes.tolist()} has no room for images of "
                f"{height}x{width} pixels (of a batch, the highest by the widest): add a canvas, "
                "or make what data.resize and data.train_transforms resize to smaller"
            )
        return self.sizes[fits.int().argmax(-1)]  # the first that fits

    def origins(self, sizes: Tensor, canvas: Tensor) -> Tensor:
        """Where on a canvas (2,) the left upper corners x, y of images of sizes (B, 2) are."""
        return torch.zeros_like(sizes)


class CentredSquare:
    """A square canvas of one size, with images in its middle.

    Args:
        side: in pixels.
    """

    def __init__(self, *, side: int) -> None:
        self.side = side

    def size(self, sizes: Tensor) -> Tensor:
        """The canvas's height and width for images of some height and width, both (..., 2).

        Raises:
            UserError: an image is larger.
        """
        longest = int(sizes.max())
        if longest > self.side:
            raise UserError(
                f"data.canvas.side={self.side} has no room for an image with a side of {longest} "
                f"pixels: make it {longest} or more, or make what data.resize and "
                f"data.train_transforms resize to {self.side} or less"
            )
        return torch.full_like(sizes, self.side)

    def origins(self, sizes: Tensor, canvas: Tensor) -> Tensor:
        """Where on a canvas (2,) the left upper corners x, y of images of sizes (B, 2) are."""
        return ((canvas - sizes) // 2).flip(1)
