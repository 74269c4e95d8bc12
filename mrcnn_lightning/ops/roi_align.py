"""What RoIs hold of a pyramid, at a fixed size: RoIAlign, and crop-and-resize.

R RoIs, C channels, L levels, P bins a side, S samples a bin and side.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from mrcnn_lightning.ops.boxes import area
from mrcnn_lightning.ops.precision import at_least_float32


def assign_levels(
    boxes: Tensor,
    *,
    canonical_size: float,
    canonical_level: int,
    levels: Sequence[int],
    rounded: bool,
) -> Tensor:
    """The pyramid level of each box (R, 4), as an index into `levels`: (R,) int64.

    Equation 1 of the FPN paper, with torchvision's 1e-6 against rounding at powers of two; or
    rounded to the nearest level instead of down. Where the pyramid skips a level, its boxes go to
    the next coarser one. A box that is not finite goes to the first.
    """
    level = canonical_level + torch.log2(area(boxes).sqrt() / canonical_size)
    level = torch.round(level) if rounded else torch.floor(level + 1e-6)
    index = torch.zeros_like(level, dtype=torch.int64)
    for finer in levels[:-1]:
        index += level > finer
    return index


def _taps(points: Tensor, size: Tensor, *, reach: float) -> tuple[Tensor, Tensor]:
    """Both neighbours, and their weights, of sample points along one axis.

    Args:
        points: (R, num), in cells of each RoI's level.
        size: (R,) how many cells its level has.
        reach: points farther than this from the first and last cell count for zero; those between
            are worth what the cell is.

    Returns:
        cells (R, num, 2) int32 and weights (R, num, 2).
    """
    last = (size - 1)[:, None].to(points.dtype)
    inside = (points >= -reach) & (points <= last + reach)
    # Points that are not finite, of boxes of a run that diverges, become 0.
    points = torch.minimum(torch.fmax(points, points.new_zeros(())), last)
    low = points.floor()
    high = torch.minimum(low + 1, last)
    upper = points - low
    weights = torch.stack([1 - upper, upper], dim=-1) * inside[..., None]
    return torch.stack([low, high], dim=-1).to(torch.int32), weights


def _by_level(values: Sequence[float], level_index: Tensor) -> Tensor:
    """Each RoI's own of one value a level, (R,), without a copy to the device to wait for."""
    dtype = torch.get_default_dtype() if isinstance(values[0], float) else torch.int64
    chosen = torch.full_like(level_index, values[0], dtype=dtype)
    for level, value in enumerate(values):
        chosen = torch.where(level_index == level, value, chosen)
    return chosen


class _Rows:
    """The cells of all levels and images laid end to end, and where each RoI finds its own."""

    def __init__(
        self, features: Sequence[Tensor], image_index: Tensor, level_index: Tensor
    ) -> None:
        num_images, channels = features[0].shape[:2]
        rows = [level.permute(0, 2, 3, 1).reshape(-1, channels) for level in features]
        self.rows = at_least_float32(torch.cat(rows))  # (all cells, C)
        cells = [num_images * level.shape[2] * level.shape[3] for level in features]
        self.height = _by_level([level.shape[2] for level in features], level_index)  # (R,)
        self.width = _by_level([level.shape[3] for level in features], level_index)
        first = _by_level([sum(cells[:level]) for level in range(len(cells))], level_index)
        self.first = first + image_index * self.height * self.width  # the image's first cell

    def pool(self, y: Tensor, x: Tensor, *, reach: float, output_size: int) -> Tensor:
        """Means of the bilinear samples in each bin, (R, C, P, P).

        Every bin is one weighted bag of rows, so that one `embedding_bag` does all levels.

        Args:
            y: (R, P * S) sample points in cells, in order.
            x: likewise.
            reach: see `_taps`.
            output_size: P.
        """
        num = y.shape[1] // output_size
        y_cells, y_weight = _taps(y, self.height, reach=reach)  # (R, P * S, 2)
        x_cells, x_weight = _taps(x, self.width, reach=reach)
        # One bag a bin: S * 2 taps along y times S * 2 along x.
        down = (y.shape[0], output_size, 1, num * 2, 1)
        right = (y.shape[0], 1, output_size, 1, num * 2)
        first, width = (
            each.to(torch.int32).view(-1, 1, 1, 1, 1) for each in (self.first, self.width)
        )
        bag = (first + y_cells.view(down) * width + x_cells.view(right)).flatten(3)
        weight = (y_weight.view(down) * x_weight.view(right)).flatten(3) / num**2
        pooled = F.embedding_bag(
            bag.flatten(0, 2),
            self.rows,
            per_sample_weights=weight.flatten(0, 2).to(self.rows.dtype),
            mode="sum",
        )
        shape = (y.shape[0], output_size, output_size, self.rows.shape[1])
        return pooled.view(shape).permute(0, 3, 1, 2)


def roi_align(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    *,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average of bilinear samples in each bin of each RoI (Mask R-CNN, section 3).

    Equals torchvision's `MultiScaleRoIAlign`, or Detectron2's `ROIAlignV2` where aligned.

    Args:
        features: L tensors (B, C, height, width).
        strides: L pixels per cell.
        boxes: (R, 4) in pixels.
        image_index: (R,) int64.
        level_index: (R,) int64, from `assign_levels`.
        output_size: P.
        sampling_ratio: S; 0 is one sample a cell, as many as the RoI is large.
        aligned: whether the middle of the first pixel is 0.5 and not 0; RoIs of less than a cell
            are then not enlarged.

    Returns:
        (R, C, P, P), at least float32.
    """
    if sampling_ratio == 0:
        return _adaptive_roi_align(
            features, strides, boxes, image_index, level_index, output_size, aligned
        )
    rows = _Rows(features, image_index, level_index)
    scale = _by_level([1 / stride for stride in strides], level_index).to(boxes.dtype)
    x1, y1, x2, y2 = (boxes * scale[:, None]).unbind(1)

    def points(start: Tensor, length: Tensor) -> Tensor:
        num = output_size * sampling_ratio
        fractions = (torch.arange(num, dtype=start.dtype, device=start.device) + 0.5) / num
        if aligned:
            return start[:, None] - 0.5 + fractions * length[:, None]
        return start[:, None] + fractions * length.clamp(min=1)[:, None]  # (R, P * S)

    return rows.pool(points(y1, y2 - y1), points(x1, x2 - x1), reach=1, output_size=output_size)


def _adaptive_roi_align(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    output_size: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign with a number of samples of each RoI's own, which takes the operator, by level."""
    maps = [at_least_float32(level) for level in features]
    boxes = boxes.to(maps[0].dtype)
    image = image_index[:, None].to(boxes.dtype)

    def cut(level: int, image: Tensor, boxes: Tensor) -> Tensor:
        pooled: Tensor = torchvision.ops.roi_align(
            maps[level],
            torch.cat([image, boxes], dim=1),
            output_size,
            1 / strides[level],
            sampling_ratio=0,
            aligned=aligned,
        )
        return pooled

    if len(maps) == 1:
        return cut(0, image, boxes)
    pooled = maps[0].new_zeros(boxes.shape[0], maps[0].shape[1], output_size, output_size)
    for level in range(len(maps)):
        is_own = level_index == level
        if torch.compiler.is_compiling():  # all RoIs, but those of other levels without samples
            own = cut(level, image, boxes * is_own[:, None])
            pooled = torch.where(is_own[:, None, None, None], own, pooled)
        else:
            chosen = torch.nonzero(is_own).squeeze(1)
            pooled = pooled.index_copy(0, chosen, cut(level, image[chosen], boxes[chosen]))
    return pooled


def crop_and_resize(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    *,
    output_size: int,
) -> Tensor:
    """One bilinear sample a bin, the corners of RoI and bins aligned, zero outside the map.

    TensorFlow's `crop_and_resize`: along a side of n cells the edges 0 and 1 of the image are the
    first and the last cell.

    Args:
        features: L tensors (B, C, height, width).
        strides: L pixels per cell.
        boxes: (R, 4) in pixels.
        image_index: (R,) int64.
        level_index: (R,) int64, from `assign_levels`.
        output_size: P, at least 2.

    Returns:
        (R, C, P, P), at least float32.
    """
    rows = _Rows(features, image_index, level_index)
    stride = _by_level(strides, level_index)

    def points(start: Tensor, end: Tensor, size: Tensor) -> Tensor:
        pixels, last = (size * stride)[:, None], (size - 1)[:, None].to(start.dtype)
        start, end = start[:, None] / pixels, end[:, None] / pixels
        steps = torch.arange(output_size, dtype=start.dtype, device=start.device)
        along = start * last + steps * (end - start) * last / (output_size - 1)  # (R, P)
        # A box often ends at the very edge: rounding must not put its last sample off the map.
        hair = 8 * torch.finfo(along.dtype).eps * last
        return torch.where((along > last) & (along <= last + hair), last, along)

    x1, y1, x2, y2 = boxes.unbind(1)
    y, x = points(y1, y2, rows.height), points(x1, x2, rows.width)
    return rows.pool(y, x, reach=0, output_size=output_size)
