"""What a start says of an annotation file: how much there is in it, and what is odd.

O objects of all images, K classes.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.checking.boxes import COCO_FORMAT, box_format, leave_image, repeats

# Of more classes than this, the most and the least frequent are named.
_MAX_CLASSES = 20
_LOOKS = {
    "corners": "x1, y1, x2, y2",
    "centred": "a centre, width and height",
    "xywh": "x1, y1, x2, y2",
}


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
    yield from _odd_boxes(annotations)
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


def _odd_boxes(annotations: Annotations) -> Iterator[str]:
    images, sizes = _images_of_objects(annotations)
    boxes = annotations.boxes.numpy()
    format_ = box_format(boxes, sizes)
    num, leaving = len(boxes), int(_leave_image(annotations).sum())
    if format_.is_relative:
        yield (
            "boxes look like parts of the image from 0 to 1: COCO's bbox is in pixels "
            "(mrcnn data check --fix writes it so)"
        )
    elif format_.layout != "xywh" or leaving * 2 > num:
        yield (
            f"most boxes ({leaving:,} of {num:,}) leave their image, as {_LOOKS[format_.layout]} "
            "would: COCO's bbox is x, y, width, height"
        )
    again = len(repeats(images, annotations.labels.numpy(), boxes))
    if again:
        yield (
            f"{again:,} objects are there twice (image, class and box): mrcnn data check names "
            "them, and its --fix drops them"
        )
    if num and annotations.crowd.all():
        yield "all objects are crowds, from which nothing is learnt: set iscrowd to 0"


def _images_of_objects(
    annotations: Annotations,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The number (O,), and the height and width (O, 2), of each object's image."""
    numbers = torch.arange(len(annotations)).repeat_interleave(annotations.num_objects())
    return numbers.numpy(), annotations.image_sizes[numbers].numpy()


def _leave_image(annotations: Annotations) -> npt.NDArray[np.bool_]:
    """Which boxes do, (O,) bool."""
    _, sizes = _images_of_objects(annotations)
    return leave_image(COCO_FORMAT.corners(annotations.boxes.numpy(), sizes), sizes)


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
