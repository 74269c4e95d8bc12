"""How large the network sees an image, and where the image lies on its batch's canvas.

B images.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv_functional


class Resize(Protocol):
    """Resizes images and their points."""

    def __call__(self, *parts: Tensor) -> Any:
        """An image (3, H, W), or an image and its points."""

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image that had this height and width."""


class Canvas(Protocol):
    """Has room for the images of a batch."""

    def size(self, sizes: Tensor) -> Tensor:
        """The canvas's height and width for images of some height and width, both (..., 2)."""

    def origins(self, sizes: Tensor, canvas: Tensor) -> Tensor:
        """Where on a canvas (2,) the left upper corners x, y of images of sizes (B, 2) are."""


class ResizeShorterSide:
    """Makes the shorter side of an image `min_size`, and cuts the longer to whole pixels.

    As torchvision does: 480 x 640 becomes 800 x 1066.

    Args:
        min_size: the shorter side, in pixels, unless the longer would pass `max_size`.
        max_size: the longest side.
    """

    def __init__(self, *, min_size: int, max_size: int) -> None:
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, *parts: Tensor) -> Any:
        """An image (3, H, W), or an image and its points."""
        return _resized(parts, self)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image that had this height and width."""
        short, long = min(size), max(size)
        new_short, new_long = self.min_size, int(self.min_size * long / short)
        if new_long > self.max_size:
            new_short, new_long = max(1, int(self.max_size * short / long)), self.max_size
        return (new_short, new_long) if size[0] <= size[1] else (new_long, new_short)


class ResizeShorterSideRounded:
    """Makes the shorter side of an image `min_size`, and rounds the longer to whole pixels.

    As Detectron2 does: 480 x 640 becomes 800 x 1067.

    Args:
        min_size: the shorter side, in pixels, unless the longer would pass `max_size`.
        max_size: the longest side.
    """

    def __init__(self, *, min_size: int, max_size: int) -> None:
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, *parts: Tensor) -> Any:
        """An image (3, H, W), or an image and its points."""
        return _resized(parts, self)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image that had this height and width."""
        scale = min(self.min_size / min(size), self.max_size / max(size))
        return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


class EnlargeShorterSide:
    """Enlarges an image until its shorter side is `min_size`, as Matterport's Mask R-CNN does.

    A larger image stays as it is; one with a side over `max_size` shrinks to that.

    Args:
        min_size: the shorter side, in pixels, unless the longer would pass `max_size`.
        max_size: the longest side.
    """

    def __init__(self, *, min_size: int, max_size: int) -> None:
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, *parts: Tensor) -> Any:
        """An image (3, H, W), or an image and its points."""
        return _resized(parts, self)

    def size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of an image that had this height and width."""
        scale = max(1.0, self.min_size / min(size))
        if round(max(size) * scale) > self.max_size:
            scale = self.max_size / max(size)
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resized(parts: Sequence[Tensor], resize: Resize) -> Any:
    size = resize.size((parts[0].shape[1], parts[0].shape[2]))
    resized = tuple(tv_functional.resize(part, list(size)) for part in parts)
    return resized if len(resized) > 1 else resized[0]


class PadToMultiple:
    """The smallest canvas with sides of whole multiples; images lie in its left upper corner.

    Args:
        multiple: in pixels, the largest stride of the model.

    Raises:
        ValueError: it is less than 1.
    """

    def __init__(self, *, multiple: int) -> None:
        if multiple < 1:
            raise ValueError(f"data.canvas.multiple={multiple} is less than 1")
        self.multiple = multiple

    def size(self, sizes: Tensor) -> Tensor:
        """The canvas's height and width for images of some height and width, both (..., 2)."""
        return (sizes + self.multiple - 1) // self.multiple * self.multiple

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
            ValueError: an image is larger.
        """
        longest = int(sizes.max())
        if longest > self.side:
            raise ValueError(
                f"data.canvas.side={self.side} has no room for an image with a side of {longest} "
                f"pixels: make it {longest} or more, or make what data.resize and "
                f"data.train_transforms resize to {self.side} or less"
            )
        return torch.full_like(sizes, self.side)

    def origins(self, sizes: Tensor, canvas: Tensor) -> Tensor:
        """Where on a canvas (2,) the left upper corners x, y of images of sizes (B, 2) are."""
        return ((canvas - sizes) // 2).flip(1)
