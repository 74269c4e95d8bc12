"""An image's objects through a transform, as the data set does it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mrcnn_lightning.data.annotations import Objects
from mrcnn_lightning.data.transforms import BoxSource, ImageTargets, image_targets, move_objects


def transform_objects(
    image: Tensor,
    objects: Objects,
    transform: Callable[..., Any],
    *,
    mini_mask_size: int | None,
    boxes_from: BoxSource,
) -> tuple[Tensor, ImageTargets]:
    moved = move_objects(image, objects, transform, with_masks=mini_mask_size is not None)
    targets = image_targets(moved, mini_mask_size=mini_mask_size, boxes_from=boxes_from)
    return moved.image, targets
