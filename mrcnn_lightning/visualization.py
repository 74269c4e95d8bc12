"""Pictures of detections and of ground truth.

N objects of one image.
"""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

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
    masks: Tensor | None = None,
) -> Tensor:
    """An image (3, H, W) uint8 with boxes (N, 4), names, scores (N,) and masks (N, H, W) bool."""
    image = image.cpu()
    seen = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).cpu()
    labels = labels.cpu()[seen]
    if not len(labels):
        return image
    colors = [class_color(label) for label in labels.tolist()]
    names = [class_names[label - 1] for label in labels.tolist()]
    if scores is not None:
        values = scores.cpu()[seen].tolist()
        names = [f"{name} {value:.2f}" for name, value in zip(names, values, strict=True)]
    if masks is not None:
        # One by one: all at once, torchvision leaves black where they overlap.
        for mask, color in zip(masks.cpu()[seen], colors, strict=True):
            image = draw_segmentation_masks(image, mask, alpha=0.5, colors=[color])
    return draw_bounding_boxes(image, boxes.cpu()[seen], names, colors=colors)


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Two images (3, H, W) in one."""
    gap = torch.full((3, left.shape[1], 4), 255, dtype=torch.uint8)
    return torch.cat([left, gap, right], dim=2)


def save(picture: Tensor, path: Path) -> None:
    """Write a picture (3, H, W) uint8 to a file."""
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
