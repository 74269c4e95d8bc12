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

from mrcnn_lightning.data.annotations import Objects
from mrcnn_lightning.data.object_masks import (
    ObjectMask,
    cut_mask,
    frames_of,
    masks_of,
    mini_masks,
    outline_boxes,
    pixel_boxes,
)
from mrcnn_lightning.data.points import Points, canvas_corners, cut_to, within
from mrcnn_lightning.user_error import UserError

# An object is gone when less of it than this is left in the image, in pixels (Detectron2's).
_MIN_SIDE = 1e-5
# A box with an edge that leaves both axes by more than this is turned or sheared, in pixels.
_TURNED = 1e-2
_FOLLOWED = (
    v2.CenterCrop,
    v2.Pad,
    v2.RandomAffine,
    v2.RandomCrop,
    v2.RandomHorizontalFlip,
    v2.RandomResize,
    v2.RandomResizedCrop,
    v2.RandomRotation,
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
            "shapes can follow: v2's resizing, flips, crops, padding, rotations, affine maps and "
            "transforms of colour"
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


@dataclass
class MovedImage:
    """An image after its transform, and its objects in its plane; some may have left it."""

    image: Tensor  # (C, H, W) uint8 or float32
    boxes: Tensor  # (G, 4) float32, cut to the image
    labels: Tensor  # (G,) int64
    crowd: Tensor  # (G,) bool
    masks: list[ObjectMask] | None  # G of them

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]


def move_objects(
    image: Tensor, objects: Objects, transform: Callable[..., Any], *, with_masks: bool
) -> MovedImage:
    """An image and its objects after a transform.

    Boxes follow by their corners. Where that shears them, or turns them by other than quarter
    turns, they would be too large: there they are those of the masks' outlines. What is cut away
    does not come back where the image grows again, as in padding after a crop.

    Args:
        image: (C, H, W) uint8 or float32.
        objects: in pixels of this image.
        transform: one of torchvision's v2, see `compose_transforms`.
        with_masks: whether masks follow too.

    Raises:
        UserError: the image is no longer of its kind and number of channels.
    """
    size, dtype, channels = (image.shape[1], image.shape[2]), image.dtype, image.shape[0]
    corners = list(objects.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2))
    masks = masks_of(objects, size) if with_masks else []
    flat = [*corners, *(points for mask in masks for points in mask.points)]
    joined = torch.cat(flat) if flat else torch.zeros(0, 2)
    points = Points(joined, canvas_size=size, num_boxes=len(corners))
    image, moved = transform(tv_tensors.Image(image), points)
    if image.dtype != dtype or image.shape[0] != channels:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"after data.train_transforms the image is {image.dtype} with {image.shape[0]} "
            f"channels, where {kind} and {channels} are wanted: the model normalizes it by itself"
        )
    size = (image.shape[1], image.shape[2])
    parts = iter(moved.as_subclass(Tensor).split([len(points) for points in flat]))
    ends = torch.stack([next(parts) for _ in corners]) if corners else torch.zeros(0, 4, 2)
    masks = [replace(mask, points=[next(parts) for _ in mask.points]) for mask in masks]
    edges = (ends[:, [1, 3]] - ends[:, :1]).abs()  # (G, 2, 2): the upper and the left one
    is_turned = (edges > _TURNED).all(2).any(1)
    if with_masks:  # which crowds may lack
        has_mask = [mask.pixels is None or bool(mask.pixels.any()) for mask in masks]
        is_turned &= torch.tensor(has_mask, dtype=torch.bool)
    ends, masks = _shown(ends, masks, moved)
    boxes = torch.cat([ends.amin(1), ends.amax(1)], dim=1)
    if with_masks and is_turned.any():
        boxes = torch.where(is_turned[:, None], outline_boxes(masks, size), boxes)
    limit = torch.tensor([size[1], size[0]], dtype=torch.float32)
    return MovedImage(
        image=image.as_subclass(Tensor),
        boxes=boxes.view(-1, 2, 2).clamp(torch.zeros(2), limit).view(-1, 4),
        labels=objects.labels,
        crowd=objects.crowd,
        masks=masks if with_masks else None,
    )


def _shown(
    ends: Tensor, masks: list[ObjectMask], points: Tensor
) -> tuple[Tensor, list[ObjectMask]]:
    """Boxes' corners (G, 4, 2) and masks without what a crop cut away before the image grew."""
    if not isinstance(points, Points):  # but what a user's own transform made of them
        return ends, masks
    if within(canvas_corners(points.canvas_size), points.picture).all():
        return ends, masks
    boxes = torch.zeros_like(ends)
    for box, corners in zip(boxes, ends, strict=True):
        left = cut_to(corners, points.picture)
        if len(left):
            (x1, y1), (x2, y2) = left.amin(0), left.amax(0)
            box[:] = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2]).view(4, 2)
    return boxes, [cut_mask(mask, points.picture) for mask in masks]


def image_targets(
    moved: MovedImage, *, mini_mask_size: int | None, boxes_from: BoxSource
) -> ImageTargets:
    """What is learnt from an image's objects; those that have left it are gone.

    Args:
        moved: the image.
        mini_mask_size: M; None where there are no masks.
        boxes_from: `file`, as they are; `pixels`, those of the masks, in whole pixels
            (Matterport's); or `outlines`, those of the part of the polygons that is in the image
            (Detectron2, where it crops). The last two want masks, and objects of which nothing is
            left are gone.
    """
    boxes = moved.boxes
    if boxes_from != "file":
        assert moved.masks is not None
        measure = pixel_boxes if boxes_from == "pixels" else outline_boxes
        boxes = measure(moved.masks, moved.size)
    kept = (boxes[:, 2:] - boxes[:, :2] > _MIN_SIDE).all(dim=1)
    masks = frames = None
    if moved.masks is not None:
        assert mini_mask_size is not None
        whole = [mask for mask, is_kept in zip(moved.masks, kept.tolist(), strict=True) if is_kept]
        frames = boxes[kept] if boxes_from == "pixels" else frames_of(whole, boxes[kept])
        masks = mini_masks(whole, frames, mini_mask_size)
    return ImageTargets(
        boxes=boxes[kept],
        labels=moved.labels[kept],
        crowd=moved.crowd[kept],
        masks=masks,
        mask_frames=frames,
    )
