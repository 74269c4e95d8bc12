"""Pictures of detections and of ground truth.

N objects of one image.
"""

import colorsys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from mrcnn_lightning.ops.boxes import has_area
from mrcnn_lightning.ops.masks import Crop

_GOLDEN_RATIO = 0.618034


def class_color(label: int) -> tuple[int, int, int]:
    """A colour for a class; neighbouring labels are far apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, 0.85, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw(
    image: Tensor,
    *,
    boxes: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    scores: Tensor | None = None,
    masks: Iterable[Crop] | None = None,
) -> Tensor:
    """An image (3, H, W) uint8 with boxes (N, 4), names, scores (N,) and masks.

    Args:
        image: is left as it is.
        boxes: in its pixels; those without area are not drawn.
        labels: (N,) in 1..K.
        class_names: of the classes 1..K.
        scores: are written behind the names.
        masks: N crops of the image, each in its place.
    """
    image = image.cpu()
    seen = has_area(boxes).cpu()
    every, labels = labels.cpu(), labels.cpu()[seen]
    if not len(labels):
        return image
    colors = [class_color(label) for label in labels.tolist()]
    names = [class_names[label - 1] for label in labels.tolist()]
    if scores is not None:
        values = scores.cpu()[seen].tolist()
        names = [f"{name} {value:.2f}" for name, value in zip(names, values, strict=True)]
    if masks is not None:
        image = image.clone()
        for crop, label, is_seen in zip(masks, every.tolist(), seen.tolist(), strict=True):
            if is_seen:
                _blend(image, crop, class_color(label))
    return draw_bounding_boxes(image, boxes.cpu()[seen], names, colors=colors)


def _blend(image: Tensor, crop: Crop, color: tuple[int, int, int]) -> None:
    """Let a mask shine through an image (3, H, W), in place and in its crop alone."""
    mask, top, left = torch.from_numpy(crop[0]), crop[1], crop[2]
    pixels = image[:, top : top + mask.shape[0], left : left + mask.shape[1]]
    half = torch.tensor(color, dtype=torch.uint8)[:, None, None] // 2
    pixels.copy_(torch.where(mask, pixels // 2 + half, pixels))


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Two images (3, H, W) in one."""
    gap = torch.full((3, left.shape[1], 4), 255, dtype=torch.uint8)
    return torch.cat([left, gap, right], dim=2)


def save(picture: Tensor, path: Path) -> None:
    """Write a picture (3, H, W) uint8 to a file."""
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
