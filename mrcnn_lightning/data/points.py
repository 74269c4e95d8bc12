"""Points of an image's plane that follow torchvision's transforms v2.

P points, V corners of the picture.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv_functional

# A point is outside of an edge when it is further away than this, in pixels.
_OUTSIDE = 1e-3


class Points(tv_tensors.TVTensor):
    """Points (P, 2) of an image's plane: x from 0 to W, y from 0 to H, pixels between whole ones.

    torchvision's own KeyPoints name pixels, 0 to W - 1, which would shift polygons by one at a
    flip; they are also clamped to the image.

    `picture` (V, 2) are the corners of the part of the plane, a convex one, that still shows the
    file's image: a crop cuts it, and what was cut away does not come back where the image grows.
    """

    canvas_size: tuple[int, int]
    num_boxes: int
    picture: Tensor

    def __new__(cls, data: Tensor, *, canvas_size: Sequence[int], num_boxes: int = 0) -> "Points":
        """Points of an image.

        Args:
            data: (P, 2); those of boxes come first, four a box: the corners, one after the other.
            canvas_size: the image's height and width.
            num_boxes: how many those are.
        """
        points: Points = data.as_subclass(cls)
        points.canvas_size = (int(canvas_size[0]), int(canvas_size[1]))
        points.num_boxes = num_boxes
        points.picture = canvas_corners(canvas_size)
        return points

    def boxes(self) -> Tensor:
        """The boxes (num_boxes, 4) around their corners."""
        corners = self.as_subclass(Tensor)[: 4 * self.num_boxes].view(-1, 4, 2)
        return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def canvas_corners(canvas_size: Sequence[int]) -> Tensor:
    """The corners (4, 2) of an image of a height and width, one after the other."""
    height, width = canvas_size
    return torch.tensor([[0, 0], [width, 0], [width, height], [0, height]], dtype=torch.float32)


def within(points: Tensor, convex: Tensor) -> Tensor:
    """Which of points (P, 2) lie in a convex polygon (V, 2), or beside it by next to nothing."""
    if len(convex) < 3:
        return torch.zeros(len(points), dtype=torch.bool)
    inward, offset = _edges(convex)
    return (points @ inward.T - offset >= -_OUTSIDE).all(1)


def cut_to(polygon: Tensor, convex: Tensor) -> Tensor:
    """The part of a polygon (P, 2) that lies in a convex one (V, 2), as (P', 2).

    By Sutherland and Hodgman (1974): parts that come apart stay joined along the cut.
    """
    if len(convex) < 3:
        return polygon[:0]
    if within(polygon, convex).all():
        return polygon
    for inward, offset in zip(*_edges(convex), strict=True):
        distance = polygon @ inward - offset
        following = distance.roll(-1)
        is_inside = distance >= -_OUTSIDE
        part = (distance / (distance - following))[:, None]
        crossing = polygon + part * (polygon.roll(-1, 0) - polygon)
        kept = torch.stack([is_inside, is_inside != is_inside.roll(-1)], dim=1).flatten()
        polygon = torch.stack([polygon, crossing], dim=1).view(-1, 2)[kept]
    return polygon


def _edges(convex: Tensor) -> tuple[Tensor, Tensor]:
    """Of a convex polygon's edges, the direction inwards (V, 2) and how far along it they lie."""
    edge = convex.roll(-1, 0) - convex
    inward = torch.stack([-edge[:, 1], edge[:, 0]], dim=1)
    inward = inward / inward.norm(dim=1, keepdim=True).clamp(min=1e-9)
    # A flip turns the order of the corners.
    is_outward = ((convex.mean(0) - convex) * inward).sum(1, keepdim=True) < 0
    inward = torch.where(is_outward, -inward, inward)
    return inward, (convex * inward).sum(1)


def _mapped(
    points: Points, canvas_size: Sequence[int], function: Callable[[Tensor], Tensor]
) -> Points:
    moved = Points(
        function(points.as_subclass(Tensor)), canvas_size=canvas_size, num_boxes=points.num_boxes
    )
    moved.picture = cut_to(function(points.picture), moved.picture)
    return moved


def _moved(
    points: Points,
    canvas_size: Sequence[int],
    *,
    factor: tuple[float, float] = (1.0, 1.0),
    offset: tuple[float, float] = (0.0, 0.0),
) -> Points:
    scale, shift = points.new_tensor(factor), points.new_tensor(offset)
    return _mapped(points, canvas_size, lambda plain: plain * scale + shift)


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


@tv_functional.register_kernel(tv_functional.affine, Points)
def _affine(
    points: Points,
    angle: float,
    translate: Sequence[float],
    scale: float,
    shear: Sequence[float],
    center: Sequence[float] | None = None,
    **_: Any,
) -> Points:
    height, width = points.canvas_size
    middle = points.new_tensor([width / 2, height / 2] if center is None else center)
    shift = middle + points.new_tensor(translate)
    return _turned(points, _linear(angle, scale, shear), middle, shift, points.canvas_size)


@tv_functional.register_kernel(tv_functional.rotate, Points)
def _rotate(
    points: Points,
    angle: float,
    expand: bool = False,
    center: Sequence[float] | None = None,
    **_: Any,
) -> Points:
    height, width = new_height, new_width = points.canvas_size
    if expand:
        # torchvision's rule for the size, asked with an image of one channel
        probe = torch.empty(1, height, width, dtype=torch.uint8)
        new_height, new_width = tv_functional.rotate(
            probe, angle, expand=True, center=center
        ).shape[1:]
    middle = points.new_tensor([width / 2, height / 2] if center is None else center)
    # Its middle stays the image's: so do the points beside another centre, as pixels do.
    shift = middle + points.new_tensor([(new_width - width) / 2, (new_height - height) / 2])
    linear = _linear(-angle, 1.0, (0.0, 0.0))  # counter-clockwise, y pointing down
    return _turned(points, linear, middle, shift, (new_height, new_width))


def _linear(angle: float, scale: float, shear: Sequence[float]) -> Tensor:
    """The matrix (2, 2) that shears along x, then along y, scales and turns; in degrees."""
    turn, along_x, along_y = (math.radians(each) for each in (angle, *shear))
    # Of a quarter turn, without what rounding leaves beside 0 and 1.
    cos, sin = round(math.cos(turn), 15), round(math.sin(turn), 15)
    rotation = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    sheared_y = rotation.new_tensor([[1, 0], [-math.tan(along_y), 1]])
    sheared_x = rotation.new_tensor([[1, -math.tan(along_x)], [0, 1]])
    return scale * rotation @ sheared_y @ sheared_x


def _turned(
    points: Points, linear: Tensor, middle: Tensor, shift: Tensor, canvas_size: Sequence[int]
) -> Points:
    """Points turned by a matrix (2, 2) about `middle`, which comes to lie at `shift`."""

    def turn(plain: Tensor) -> Tensor:
        return ((plain - middle).double() @ linear.T + shift).to(plain.dtype)

    return _mapped(points, canvas_size, turn)
