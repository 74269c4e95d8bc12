"""Augmentation by torchvision's transforms v2, with shapes that follow the image.

C channels and G objects of one image, P points, M mini-mask side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv_functional

from mrcnn_lightning.data.annotations import Objects
from mrcnn_lightning.data.object_masks import (
    frames_of,
    masks_of,
    mini_masks,
    outline_boxes,
    pixel_boxes,
)
from mrcnn_lightning.user_error import UserError

# An object is gone when less of it than this is left in the image, in pixels (Detectron2's).
_MIN_SIDE = 1e-5
_FOLLOWED = (
    v2.CenterCrop,
    v2.Pad,
    v2.RandomCrop,
    v2.RandomHorizontalFlip,
    v2.RandomResize,
    v2.RandomResizedCrop,
    v2.RandomShortestSize,
    v2.RandomVerticalFlip,
    v2.RandomZoomOut,
    v2.Resize,
    v2.ScaleJitter,
    # These move nothing.
    v2.GaussianBlur,
    v2.GaussianNoise,
    v2.Identity,
    v2.RandomErasing,
)
# Where boxes come from: the file, the masks' pixels, or the outlines of the masks.
BoxSource = Literal["file", "pixels", "outlines"]
_CONTAINERS = (v2.Compose, v2.RandomApply, v2.RandomChoice, v2.RandomOrder)


class ImageTargets(NamedTuple):
    """The objects of one image, in pixels of the image as the network gets it."""

    boxes: Tensor  # (G, 4) float32
    labels: Tensor  # (G,) int64
    crowd: Tensor  # (G,) bool
    masks: Tensor | None  # (G, M, M) uint8
    mask_frames: Tensor | None  # (G, 4) float32, the box that each mask covers


@dataclass
class Sample:
    """One image as the network gets it, and the objects in it."""

    image: Tensor  # (C, H, W) uint8 or float32
    image_id: int
    seed: int
    original_size: tuple[int, int]  # height, width of the file's image
    targets: ImageTargets


class Points(tv_tensors.TVTensor):
    """Points (P, 2) of an image's plane: x from 0 to W, y from 0 to H, pixels between whole ones.

    torchvision's own KeyPoints name pixels, 0 to W - 1, which would shift polygons by one at a
    flip; they are also clamped to the image.
    """

    canvas_size: tuple[int, int]

    def __new__(cls, data: Tensor, *, canvas_size: Sequence[int]) -> "Points":
        """Points of an image of height and width `canvas_size`."""
        points: Points = data.as_subclass(cls)
        points.canvas_size = (int(canvas_size[0]), int(canvas_size[1]))
        return points


def _moved(
    points: Points,
    canvas_size: Sequence[int],
    *,
    factor: tuple[float, float] = (1.0, 1.0),
    offset: tuple[float, float] = (0.0, 0.0),
) -> Points:
    plain = points.as_subclass(Tensor)
    return Points(
        plain * plain.new_tensor(factor) + plain.new_tensor(offset), canvas_size=canvas_size
    )


@tv_functional.register_kernel(tv_functional.horizontal_flip, Points)
def _horizontal_flip(points: Points, **_: Any) -> Points:
    size = points.canvas_size
    return _moved(points, size, factor=(-1.0, 1.0), offset=(size[1], 0.0))


@tv_functional.register_kernel(tv_functional.vertical_flip, Points)
def _vertical_flip(points: Points, **_: Any) -> Points:
    size = points.canvas_size
    return _moved(points, size, factor=(1.0, -1.0), offset=(0.0, size[0]))


@tv_functional.register_kernel(tv_functional.resize, Points)
def _resize(
    points: Points, size: int | Sequence[int] | None, max_size: int | None = None, **_: Any
) -> Points:
    # torchvision's rule for a size that is not height and width, asked with an image of no channel
    probe = torch.empty(0, *points.canvas_size, dtype=torch.uint8)
    height, width = tv_functional.resize(probe, size, max_size=max_size).shape[1:]
    factor = (width / points.canvas_size[1], height / points.canvas_size[0])
    return _moved(points, (height, width), factor=factor)


@tv_functional.register_kernel(tv_functional.crop, Points)
def _crop(points: Points, top: int, left: int, height: int, width: int, **_: Any) -> Points:
    return _moved(points, (height, width), offset=(-left, -top))


@tv_functional.register_kernel(tv_functional.center_crop, Points)
def _center_crop(points: Points, output_size: list[int], **_: Any) -> Points:
    height, width = output_size * 2 if len(output_size) == 1 else output_size
    top, left = (
        # torchvision pads first and rounds down, but rounds half to even where it only crops
        -((new - old) // 2) if new > old else round((old - new) / 2)
        for old, new in zip(points.canvas_size, (height, width), strict=True)
    )
    cropped: Points = _crop(points, top, left, height, width)
    return cropped


@tv_functional.register_kernel(tv_functional.resized_crop, Points)
def _resized_crop(
    points: Points, top: int, left: int, height: int, width: int, size: list[int], **_: Any
) -> Points:
    resized: Points = _resize(_crop(points, top, left, height, width), size)
    return resized


@tv_functional.register_kernel(tv_functional.pad, Points)
def _pad(points: Points, padding: int | list[int], **_: Any) -> Points:
    sides = [padding] if isinstance(padding, int) else list(padding)
    left, top, right, bottom = (sides * 4)[:4] if len(sides) < 4 else sides
    height, width = points.canvas_size
    return _moved(points, (height + top + bottom, width + left + right), offset=(left, top))


def compose_transforms(transforms: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Transforms one after the other, if shapes can follow each of them.

    Raises:
        UserError: names the first of torchvision's that shapes cannot follow.
    """
    for transform in transforms:
        _require_followed(transform)
    composed: Callable[..., Any] = v2.Compose(list(transforms)) if transforms else v2.Identity()
    return composed


def _require_followed(transform: Any) -> None:
    if isinstance(transform, _CONTAINERS):
        for part in transform.transforms:
            _require_followed(part)
        return
    module = type(transform).__module__
    if not module.startswith("torchvision.") or module.endswith("v2._color"):
        return
    if not isinstance(transform, _FOLLOWED):
        raise UserError(
            f"data.train_transforms has {type(transform).__name__}, which is not among those that "
            "shapes can follow: v2's resizing, flips, crops, padding and transforms of colour"
        )


def colour_transforms(transforms: Sequence[Callable[..., Any]]) -> list[str]:
    """Names of those that change colours, wherever they are in the list."""
    names: list[str] = []
    for transform in transforms:
        if isinstance(transform, _CONTAINERS):
            names += colour_transforms(transform.transforms)
        elif type(transform).__module__.endswith("v2._color"):
            names.append(type(transform).__name__)
    return names


def transform_objects(
    image: Tensor,
    objects: Objects,
    transform: Callable[..., Any],
    *,
    mini_mask_size: int | None,
    boxes_from: BoxSource,
) -> tuple[Tensor, ImageTargets]:
    """An image and its objects after a transform; objects that have left the image are gone.

    Args:
        image: (C, H, W) uint8 or float32.
        objects: in pixels of this image.
        transform: one of torchvision's v2, see `compose_transforms`.
        mini_mask_size: M, or None for no masks.
        boxes_from: `file`, cut to the new image; `pixels`, those of the masks in the new image, in
            whole pixels (Matterport's); or `outlines`, those of the part of the polygons that
            is in the new image (Detectron2, where it crops). The last two want masks, and objects
            of which nothing is left are gone.

    Returns:
        The image, and the objects in its pixels.

    Raises:
        UserError: the image is no longer of its kind and number of channels.
    """
    size, dtype, channels = (image.shape[1], image.shape[2]), image.dtype, image.shape[0]
    corners = list(objects.boxes.view(-1, 2, 2))
    whole = masks_of(objects, size) if mini_mask_size is not None else []
    flat = [*corners, *(points for mask in whole for points in mask.points)]
    joined = torch.cat(flat) if flat else torch.zeros(0, 2)
    image, moved = transform(tv_tensors.Image(image), Points(joined, canvas_size=size))
    if image.dtype != dtype or image.shape[0] != channels:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"after data.train_transforms the image is {image.dtype} with {image.shape[0]} "
            f"channels, where {kind} and {channels} are wanted: the model normalizes it by itself"
        )
    parts = iter(moved.as_subclass(Tensor).split([len(points) for points in flat]))

    ends = torch.stack([next(parts) for _ in corners]) if corners else torch.zeros(0, 2, 2)
    limit = torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float32)
    boxes = torch.cat([ends.amin(1), ends.amax(1)], dim=1)
    boxes = boxes.view(-1, 2, 2).clamp(torch.zeros(2), limit).view(-1, 4)
    whole = [replace(mask, points=[next(parts) for _ in mask.points]) for mask in whole]
    if boxes_from != "file":
        assert mini_mask_size is not None
        measure = pixel_boxes if boxes_from == "pixels" else outline_boxes
        boxes = measure(whole, (image.shape[1], image.shape[2]))
    kept = (boxes[:, 2:] - boxes[:, :2] > _MIN_SIDE).all(dim=1)
    masks = frames = None
    if mini_mask_size is not None:
        whole = [mask for mask, is_kept in zip(whole, kept.tolist(), strict=True) if is_kept]
        frames = boxes[kept] if boxes_from == "pixels" else frames_of(whole, boxes[kept])
        masks = mini_masks(whole, frames, mini_mask_size)
    return image.as_subclass(Tensor), ImageTargets(
        boxes=boxes[kept],
        labels=objects.labels[kept],
        crowd=objects.crowd[kept],
        masks=masks,
        mask_frames=frames,
    )
