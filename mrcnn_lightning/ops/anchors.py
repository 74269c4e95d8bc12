"""The anchor grid: boxes of a few sizes and shapes around every cell of every pyramid level.

A anchors in all, a anchors a cell.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """The anchors of one cell, centred on the origin: (a, 4) float64.

    A ratio is height over width; ratio is the outer loop, size the inner (torchvision's order).
    """
    ratios = torch.tensor(aspect_ratios, dtype=torch.float64)
    scales = torch.tensor(sizes, dtype=torch.float64)
    heights = (ratios.sqrt()[:, None] * scales).flatten()
    widths = ((1 / ratios.sqrt())[:, None] * scales).flatten()
    return torch.stack([-widths, -heights, widths, heights], dim=1) / 2


def anchor_grid(
    cells: Sequence[Tensor],
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[tuple[int, int]],
    *,
    offset: float,
) -> Tensor:
    """Anchors of all levels laid end to end: (A, 4), by level, then row, column and cell anchor.

    Args:
        cells: per level, the anchors of one cell (a, 4).
        feature_sizes: per level, height and width.
        strides: per level, pixels from cell to cell along y and x.
        offset: where in its cell an anchor is centred: 0 its corner, 0.5 its middle.
    """
    levels = []
    for cell, (height, width), (down, right) in zip(cells, feature_sizes, strides, strict=True):
        rows = (torch.arange(height, device=cell.device) + offset) * down
        columns = (torch.arange(width, device=cell.device) + offset) * right
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        shifts = torch.stack([x, y, x, y], dim=-1).to(cell.dtype)  # (height, width, 4)
        levels.append((shifts[:, :, None] + cell).flatten(0, 2))
    return torch.cat(levels)
