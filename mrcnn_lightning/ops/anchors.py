"""The anchor grid: boxes of a few sizes and shapes around every cell of every pyramid level.

A anchors in all, a anchors a cell.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """The anchors of one cell, centred on the origin and rounded to whole pixels: (a, 4).

    A ratio is height over width; ratio is the outer loop, size the inner. torchvision's anchors.
    """
    ratios = torch.tensor(aspect_ratios, dtype=torch.float32)
    scales = torch.tensor(sizes, dtype=torch.float32)
    heights = (ratios.sqrt()[:, None] * scales).flatten()
    widths = ((1 / ratios.sqrt())[:, None] * scales).flatten()
    return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).round()


def anchor_grid(
    cells: Sequence[Tensor], feature_sizes: Sequence[tuple[int, int]], image_size: tuple[int, int]
) -> Tensor:
    """Anchors of all levels laid end to end: (A, 4), by level, then row, column and cell anchor.

    A level's stride is the canvas divided by the level's size and rounded down (torchvision's
    rule, which its published weights were trained with: 61 instead of 64 for P6 at 800 pixels).

    Args:
        cells: per level, the anchors of one cell (a, 4).
        feature_sizes: per level, height and width.
        image_size: height and width of the padded canvas.
    """
    levels = []
    for cell, (height, width) in zip(cells, feature_sizes, strict=True):
        rows = torch.arange(height, device=cell.device) * (image_size[0] // height)
        columns = torch.arange(width, device=cell.device) * (image_size[1] // width)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        shifts = torch.stack([x, y, x, y], dim=-1).to(cell.dtype)  # (height, width, 4)
        levels.append((shifts[:, :, None] + cell).flatten(0, 2))
    return torch.cat(levels)
