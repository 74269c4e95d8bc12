"""RoIAlign over all pyramid levels in one gather.

R RoIs, C channels, L levels, P bins a side, S samples a bin and side.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mrcnn_lightning.ops.boxes import area
from mrcnn_lightning.ops.precision import at_least_float32


def assign_levels(
    boxes: Tensor, *, canonical_size: float, canonical_level: int, levels: range
) -> Tensor:
    """The pyramid level of each box (R, 4), as an index into `levels`: (R,) int64.

    Equation 1 of the FPN paper, with torchvision's 1e-6 against rounding at powers of two.
    """
    ratio = area(boxes).sqrt() / canonical_size
    level = torch.floor(canonical_level + torch.log2(ratio) + 1e-6)
    return level.clamp(levels[0], levels[-1]).to(torch.int64) - levels[0]


def _taps(start: Tensor, length: Tensor, size: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Both neighbours, and their weights, of `num` sample points along one axis.

    Args:
        start: (R,) where the RoI starts, in cells of its level.
        length: (R,) how long it is.
        size: (R,) how many cells its level has.
        num: sample points, spread evenly.

    Returns:
        cells (R, num, 2) int64 and weights (R, num, 2), zero for points outside the level.
    """
    fractions = (torch.arange(num, dtype=start.dtype, device=start.device) + 0.5) / num
    points = start[:, None] + fractions * length[:, None]  # (R, num)
    last = (size - 1)[:, None].to(points.dtype)
    inside = (points >= -1) & (points <= last + 1)
    points = torch.minimum(points.clamp(min=0), last)
    low = points.floor()
    high = torch.minimum(low + 1, last)
    upper = points - low
    weights = torch.stack([1 - upper, upper], dim=-1) * inside[..., None]
    return torch.stack([low, high], dim=-1).to(torch.int64), weights


def _by_level(values: Sequence[float], level_index: Tensor) -> Tensor:
    """Each RoI's own of one value a level, (R,), without a copy to the device to wait for."""
    chosen = torch.full_like(level_index, values[0], dtype=torch.tensor(values).dtype)
    for level, value in enumerate(values):
        chosen = torch.where(level_index == level, value, chosen)
    return chosen


def roi_align(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    *,
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    """Average of bilinear samples in each bin of each RoI (Mask R-CNN, section 3).

    Equals torchvision's `MultiScaleRoIAlign`. The rows (cells) of all levels lie end to end and
    every bin is one weighted bag of them, so that one `embedding_bag` does all levels and images.

    Args:
        features: L tensors (B, C, height, width).
        strides: L pixels per cell.
        boxes: (R, 4) in pixels.
        image_index: (R,) int64.
        level_index: (R,) int64, from `assign_levels`.
        output_size: P.
        sampling_ratio: S.

    Returns:
        (R, C, P, P), at least float32.
    """
    num_images, channels = features[0].shape[:2]
    num = output_size * sampling_ratio
    rows = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in features])
    rows = at_least_float32(rows)  # (all cells, C)

    cells = [num_images * level.shape[2] * level.shape[3] for level in features]
    height = _by_level([level.shape[2] for level in features], level_index)  # (R,)
    width = _by_level([level.shape[3] for level in features], level_index)
    first = _by_level([sum(cells[:level]) for level in range(len(cells))], level_index)
    first = first + image_index * height * width  # the row of the image's first cell

    scale = _by_level([1 / stride for stride in strides], level_index).to(boxes.dtype)
    x1, y1, x2, y2 = (boxes * scale[:, None]).unbind(1)
    x, x_weight = _taps(x1, (x2 - x1).clamp(min=1), width, num)  # (R, P * S, 2)
    y, y_weight = _taps(y1, (y2 - y1).clamp(min=1), height, num)

    # One bag a bin: S * 2 taps along y times S * 2 along x.
    bins = (len(boxes), output_size, 1, sampling_ratio * 2, 1)
    y, y_weight = y.view(bins), y_weight.view(bins)
    bins = (len(boxes), 1, output_size, 1, sampling_ratio * 2)
    x, x_weight = x.view(bins), x_weight.view(bins)
    bag = (first.view(-1, 1, 1, 1, 1) + y * width.view(-1, 1, 1, 1, 1) + x).flatten(3)
    weight = (y_weight * x_weight).flatten(3) / sampling_ratio**2  # (R, P, P, S * S * 4)
    pooled = F.embedding_bag(
        bag.flatten(0, 2),
        rows,
        per_sample_weights=weight.flatten(0, 2).to(rows.dtype),
        mode="sum",
    )
    return pooled.view(len(boxes), output_size, output_size, channels).permute(0, 3, 1, 2)
