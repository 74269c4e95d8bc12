"""Pictures of detections and of ground truth.

N objects of one image.
"""

import colorsys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mrcnn_lightning.data.images import read_image
from mrcnn_lightning.inference.stretching import as_rgb
from mrcnn_lightning.ops.boxes import has_area
from mrcnn_lightning.results.image_detections import ImageDetections
from mrcnn_lightning.results.pasting import Crop
from mrcnn_lightning.results.rle import decode_crops

# Smaller images are enlarged until their longer side has so many pixels at least: names need room.
LONGER_SIDE = 512
# Names of more objects would hide them: there are thin boxes alone.
_MOST_NAMES = 100
_GOLDEN_RATIO = 0.618034
_Rectangle = tuple[float, float, float, float]


def class_color(label: int) -> tuple[int, int, int]:
    """A colour for a class; neighbouring labels are far apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, 0.85, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw(
    image: Tensor | str | Path,
    detections: ImageDetections,
    class_names: Sequence[str],
    *,
    min_score: float = 0.5,
    bands: Sequence[int] | None = None,
) -> Image.Image:
    """A picture of what was found in an image.

    Args:
        image: (3, H, W) uint8 RGB, or its file; or what `predictor.read` gives of another kind.
        detections: in its pixels, as a `Predictor` gives them.
        class_names: of the classes 1..K, `predictor.class_names`.
        min_score: less confident detections are not drawn.
        bands: which are shown of an image that is not RGB, see `as_rgb`.

    Raises:
        UserError: the file is no image, or it has no such bands.
    """
    found = detections.above(min_score)
    return draw_objects(
        as_rgb(image if isinstance(image, Tensor) else read_image(image), bands),
        boxes=found.boxes,
        labels=found.labels,
        class_names=class_names,
        scores=found.scores,
        masks=None if found.rles is None else decode_crops(found.rles, found.size),
    )


def draw_objects(
    image: Tensor,
    *,
    boxes: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    scores: Tensor | None = None,
    masks: Iterable[Crop] | None = None,
) -> Image.Image:
    """A picture of an image with boxes, masks and, of 100 objects at most, names and scores.

    Args:
        image: (3, H, W) uint8, is left as it is.
        boxes: (N, 4) in its pixels; those without area are not drawn.
        labels: (N,) in 1..K.
        class_names: of the classes 1..K.
        scores: (N,), are written behind the names.
        masks: N crops of the image, each in its place.
    """
    pixels = image.cpu().clone()
    seen = has_area(boxes).tolist()
    colors = [class_color(label) for label in labels.tolist()]
    if masks is not None:
        for crop, color, is_seen in zip(masks, colors, seen, strict=True):
            if is_seen:
                _blend(pixels, crop, color)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = max(1, -(-LONGER_SIDE // max(picture.size)))
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale))
    values = [""] * len(seen) if scores is None else [f" {value:.2f}" for value in scores.tolist()]
    names = [
        f"{class_names[label - 1]}{value}" for label, value in zip(labels, values, strict=True)
    ]
    canvas, taken = ImageDraw.Draw(picture), list[_Rectangle]()
    has_names = sum(seen) <= _MOST_NAMES
    width = 2 if has_names else 1
    for box, name, color, is_seen in zip(boxes.tolist(), names, colors, seen, strict=True):
        if is_seen:
            x1, y1, x2, y2 = (side * scale for side in box)
            canvas.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=color, width=width)
        if is_seen and has_names:
            _write(canvas, name, (x1, y1, x2, y2), color, taken)
    return picture


def _blend(image: Tensor, crop: Crop, color: tuple[int, int, int]) -> None:
    """Let a mask shine through an image (3, H, W), in place and in its crop alone."""
    mask, top, left = torch.from_numpy(crop[0]), crop[1], crop[2]
    pixels = image[:, top : top + mask.shape[0], left : left + mask.shape[1]]
    half = torch.tensor(color, dtype=torch.uint8)[:, None, None] // 2
    pixels.copy_(torch.where(mask, pixels // 2 + half, pixels))


def _write(
    canvas: ImageDraw.ImageDraw,
    name: str,
    box: _Rectangle,
    color: tuple[int, int, int],
    taken: list[_Rectangle],
) -> None:
    """Write a name at its box, where it covers no other name if there is such a place."""
    font = _font()
    left, top, right, bottom = canvas.textbbox((0, 0), name, font=font)
    width, height = right - left + 4, bottom - top + 4
    places = [(box[0], box[1] - height), (box[0], box[1]), (box[0], box[3])]
    places += [(box[0], box[1] + step * height) for step in range(1, 40)]
    spots = [_inside(x, y, width, height, canvas.im.size) for x, y in places]
    free = (spot for spot in spots if not any(_overlap(spot, other) for other in taken))
    spot = next(free, spots[0])
    taken.append(spot)
    canvas.rectangle(spot, fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 128 else (255, 255, 255)
    canvas.text((spot[0] + 2 - left, spot[1] + 2 - top), name, fill=ink, font=font)


@cache
def _font() -> Any:
    return ImageFont.load_default(size=14)


def _inside(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> _Rectangle:
    """A rectangle of this size that starts at a point, moved into the picture."""
    x, y = max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - height))
    return x, y, x + width, y + height


def _overlap(one: _Rectangle, other: _Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one height in one."""
    both = Image.new("RGB", (left.width + 4 + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + 4, 0))
    return both


def contact_sheet(pictures: Sequence[Image.Image], *, columns: int) -> Image.Image:
    """One or more pictures in rows, each row as high as the highest of its pictures."""
    rows = [pictures[first : first + columns] for first in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) + 4 for row in rows]
    width = max(picture.width for picture in pictures) + 4
    sheet = Image.new("RGB", (len(rows[0]) * width - 4, sum(heights) - 4), "white")
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * width, sum(heights[:number])))
    return sheet
