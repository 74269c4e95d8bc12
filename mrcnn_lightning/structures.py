"""What flows between the parts: padded batches of images, targets and detections.

B images in the batch, G padded objects an image, D padded detections an image, N detections of
one image, M mini-mask side, m side of a predicted mask. Boxes are (x1, y1, x2, y2) in pixels of
the network's input; labels are 0 for padding and background, 1..K for the classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", "Targets", "Batch", "Detections")


def map_tensors(data: T, function: Callable[[Tensor], Tensor]) -> T:
    """A copy of a dataclass with `function` applied to every tensor, nested ones included."""

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        return map_tensors(value, function) if isinstance(value, Targets) else value

    return replace(data, **{field.name: apply(getattr(data, field.name)) for field in fields(data)})


@dataclass
class Targets:
    """Ground truth of a batch.

    A mask travels as a mini-mask: (M, M) cells that cover its frame, a box of the network's input.
    A full-size mask is the same thing with the whole image as its frame.
    """

    boxes: Tensor  # (B, G, 4) float
    labels: Tensor  # (B, G) int64, 0 where padded
    crowd: Tensor  # (B, G) bool
    masks: Tensor | None  # (B, G, M, M) uint8
    mask_frames: Tensor | None  # (B, G, 4) float

    @property
    def trainable(self) -> Tensor:
        """(B, G) bool: the objects to learn from, neither padding nor crowds."""
        return (self.labels > 0) & ~self.crowd


@dataclass
class Batch:
    """Images of different sizes, each somewhere on one padded canvas, and their targets."""

    images: Tensor  # (B, 3, H, W) uint8 RGB; or (B, channels, H, W) of another kind
    image_ids: Tensor  # (B,) int64, as in the annotation file
    windows: Tensor  # (B, 4) float, the box of the canvas that the image itself covers
    # (B, 2) float64, network pixels per original pixel along x and y; always on the host
    scales: Tensor
    original_sizes: Tensor  # (B, 2) int64, height and width of the file's image
    seeds: Tensor  # (B,) int64, each image's seed for the sampling of anchors and RoIs
    targets: Targets | None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The batch on another device, but for its scales: Apple's GPUs have no float64."""
        others = replace(self, scales=self.original_sizes)
        moved = map_tensors(others, lambda each: each.to(device, non_blocking=non_blocking))
        return replace(moved, scales=self.scales)

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; the data loader calls it."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass
class Detections:
    """What the model found in a batch, best first, in pixels of the network's input."""

    boxes: Tensor  # (B, D, 4) float
    scores: Tensor  # (B, D) float, 0 where padded
    labels: Tensor  # (B, D) int64, 0 where padded
    masks: Tensor | None  # (B, D, m, m) float, the probability that a cell of the box is the object

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Detections":
        """The detections on another device."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))
