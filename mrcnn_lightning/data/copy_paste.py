"""Simple copy-paste (Ghiasi et al. 2021): objects of one image put onto another.

G objects of an image, H and W of an image.
"""

from dataclasses import replace

import torch
from torch import Tensor

from mrcnn_lightning.data.object_masks import ObjectMask, pixels_at, pixels_of
from mrcnn_lightning.data.transforms import MovedImage

# Of an object that is hidden further, too little is left to learn from.
_LEAST_VISIBLE = 0.1


def paste_objects(onto: MovedImage, other: MovedImage) -> MovedImage:
    """An image with objects of another one on it, each with a probability of one half.

    Crowds are not pasted, nor are objects of which no pixel is there. What pasted objects hide of
    others is no longer theirs; of objects that are nearly hidden nothing stays. Where the images
    differ in size, their first rows and columns meet.

    Args:
        onto: the image, with masks.
        other: likewise.
    """
    assert onto.masks is not None and other.masks is not None
    height, width = (min(sides) for sides in zip(onto.size, other.size, strict=True))
    limit = torch.tensor([width, height] * 2, dtype=torch.float32)
    boxes = other.boxes.minimum(limit)
    there = (boxes[:, 2:] > boxes[:, :2]).all(1) & ~other.crowd
    image, covered = onto.image.clone(), torch.zeros(onto.size, dtype=torch.bool)
    chosen = []
    for number in torch.nonzero(there & (torch.rand(len(boxes)) < 0.5))[:, 0].tolist():
        x1, y1, x2, y2 = frame = _frame(boxes[number], (height, width))
        pixels = pixels_of(other.masks[number], frame) > 0
        if pixels.any():
            chosen.append(number)
            covered[y1:y2, x1:x2] |= pixels
            # Of the whole image at once, this would take longer than all else here.
            under = image[:, y1:y2, x1:x2]
            under[:] = torch.where(pixels, other.image[:, y1:y2, x1:x2], under)
    left = [
        _what_is_left(mask, box, covered) for mask, box in zip(onto.masks, onto.boxes, strict=True)
    ]
    kept = torch.tensor([part is not None for part in left], dtype=torch.bool)
    parts = [part for part in left if part is not None]
    return replace(
        onto,
        image=image,
        boxes=torch.cat([*(box[None] for _, box in parts), boxes[chosen]]),
        labels=torch.cat([onto.labels[kept], other.labels[chosen]]),
        crowd=torch.cat([onto.crowd[kept], other.crowd[chosen]]),
        masks=[*(mask for mask, _ in parts), *(other.masks[number] for number in chosen)],
    )


def _frame(box: Tensor, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole pixels x1, y1, x2, y2 of an image of `size` that a box (4,) touches."""
    x1, y1 = (int(start) for start in box[:2].floor().clamp(min=0))
    x2, y2 = (int(end) for end in box[2:].ceil())
    return x1, y1, max(min(x2, size[1]), x1), max(min(y2, size[0]), y1)


def _what_is_left(
    mask: ObjectMask, box: Tensor, covered: Tensor
) -> tuple[ObjectMask, Tensor] | None:
    """The mask and box (4,) of an object that is hidden where `covered` (H, W) says, or None."""
    x1, y1, x2, y2 = frame = _frame(box, (covered.shape[0], covered.shape[1]))
    hides = covered[y1:y2, x1:x2]
    if not hides.any():
        return mask, box
    pixels = pixels_of(mask, frame) > 0
    visible = pixels & ~hides
    if torch.equal(visible, pixels):
        return mask, box
    if visible.sum() < _LEAST_VISIBLE * pixels.sum():
        return None
    rows, columns = (torch.nonzero(visible.any(axis))[:, 0] for axis in (1, 0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    seen = visible[top:bottom, left:right].to(torch.uint8)
    extent = torch.tensor([x1 + left, y1 + top, x1 + right, y1 + bottom], dtype=torch.float32)
    # The box that was may end within a pixel.
    extent = torch.cat([extent[:2].maximum(box[:2]), extent[2:].minimum(box[2:])])
    return pixels_at(seen, left=x1 + left, top=y1 + top), extent
