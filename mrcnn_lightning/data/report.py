"""What a start says of an annotation file: how much there is in it, and what is odd.

O objects of all images, K classes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mrcnn_lightning.data.annotations import Annotations

# Of more classes than this, the most and the least frequent are named.
_MAX_CLASSES = 20
# Boxes are rounded; one that leaves its image by less than this, in pixels, does not.
_ROUNDING = 1.0


def contents(annotations: Annotations) -> Iterator[str]:
    """Sentences that say how many images and objects there are, and of which classes."""
    crowd = annotations.crowd
    empty = int((annotations.num_trainable() == 0).sum())
    leaving = int(_leave_image(annotations).sum())
    yield (
        f"{len(annotations):,} images ({empty:,} without objects), {int((~crowd).sum()):,} objects "
        f"and {int(crowd.sum()):,} crowds; {leaving:,} boxes leave their image"
    )
    yield f"objects a class: {_classes(annotations)}"


def oddities(annotations: Annotations, *, is_evaluated: bool) -> Iterator[str]:
    """Sentences that warn of what is probably wrong, or is treated otherwise than elsewhere."""
    if annotations.left_out:
        reasons = ", ".join(f"{num:,} {reason}" for reason, num in annotations.left_out.items())
        yield f"left out of training and of evaluation (pycocotools would count them): {reasons}"
    num, leaving = len(annotations.crowd), int(_leave_image(annotations).sum())
    if leaving * 2 > num:
        yield (
            f"most boxes ({leaving:,} of {num:,}) leave their image, as x1, y1, x2, y2 would: "
            "COCO's bbox is x, y, width, height"
        )
    if annotations.odd_areas:
        yield (
            f"{annotations.odd_areas:,} objects have an area that is no positive number: it is "
            "measured from the mask, or else from the box"
        )
    if annotations.has_id_0 and is_evaluated:
        yield (
            "an annotation has the id 0, which pycocotools takes for 'no match': its AP is lower "
            "than this project's, which counts the object as any other"
        )


def _leave_image(annotations: Annotations) -> Tensor:
    """Which boxes do, (O,) bool."""
    origins, sides = annotations.boxes.split(2, dim=1)
    limits = annotations.image_sizes.flip(1).repeat_interleave(annotations.num_objects(), dim=0)
    outside: Tensor = (origins < -_ROUNDING) | (origins + sides > limits + _ROUNDING)
    return outside.any(dim=1)


def _classes(annotations: Annotations) -> str:
    names = annotations.class_names
    trained = annotations.labels[~annotations.crowd]
    numbers = torch.bincount(trained, minlength=len(names) + 1)[1:]  # (K,)
    order = numbers.argsort(descending=True, stable=True).tolist()
    parts = [f"{names[label]} {int(numbers[label]):,}" for label in order]
    if len(parts) > _MAX_CLASSES:
        half = _MAX_CLASSES // 2
        parts = [*parts[:half], "...", *parts[-half:]]
    return ", ".join(parts)
