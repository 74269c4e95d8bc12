"""Anchors that fit the boxes of a set.

O objects, L levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.checking.boxes import AnchorLevel, Floats, best_anchor_iou
from mrcnn_lightning.ops.anchors import cell_anchors

# Of objects, drawn at random, that sizes are tried on.
_SAMPLE = 20_000
# Of the finest level's anchors, in its cells.
_SMALLEST, _LARGEST, _TRIED = 1.0, 64.0, 49
# Ratios that differ by less than this factor are one.
_SAME = 1.15


def boxes_in_training(
    annotations: Annotations, resize: Callable[[tuple[int, int]], tuple[int, int]]
) -> Floats:
    """The boxes (O, 4) of a set, crowds aside, as x1, y1, x2, y2 of the resized images.

    Args:
        annotations: of the set.
        resize: height and width to those that the network sees.
    """
    sizes = annotations.image_sizes
    resized = torch.tensor([resize((h, w)) for h, w in sizes.tolist()]).view(-1, 2)
    scales = (resized / sizes).flip(1).repeat_interleave(annotations.num_objects(), dim=0)
    origins, sides = (annotations.boxes * scales.repeat(1, 2)).split(2, dim=1)
    boxes: Floats = torch.cat([origins, origins + sides], dim=1)[~annotations.crowd].numpy()
    return boxes


def fit_anchors(boxes: Floats, levels: Sequence[AnchorLevel]) -> tuple[list[int], list[float]]:
    """Sizes of L levels, each twice the one before, and the aspect ratios, for a set's boxes.

    The ratios are the medians of the thirds of the objects, ordered by height over width. The
    sizes are those with the greatest mean IoU of an object with its best anchor (as YOLOv2,
    section 2, measures anchors), with the places where anchors can lie.

    Args:
        boxes: (O, 4), one at least, in pixels of the network's input.
        levels: whose strides and offsets hold.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    ratios = np.exp(np.quantile(np.log(sides[:, 1] / sides[:, 0]), [1 / 6, 1 / 2, 5 / 6]))
    kept = [ratio for ratio in (ratios[0], ratios[2]) if not 1 / _SAME < ratio / ratios[1] < _SAME]
    aspect_ratios = sorted(round(float(ratio), 2) for ratio in (ratios[1], *kept))
    if len(boxes) > _SAMPLE:
        boxes = boxes[np.random.default_rng(0).choice(len(boxes), _SAMPLE, replace=False)]
    tried = np.geomspace(_SMALLEST, _LARGEST, _TRIED) * levels[0].strides[0]
    sizes = max(
        ([round(float(first)) * 2**level for level in range(len(levels))] for first in tried),
        key=lambda sizes: best_anchor_iou(boxes, with_cells(levels, sizes, aspect_ratios)).mean(),
    )
    return sizes, aspect_ratios


def with_cells(
    levels: Sequence[AnchorLevel], sizes: Sequence[int], aspect_ratios: Sequence[float]
) -> list[AnchorLevel]:
    """The levels with anchors of one size each, in all ratios."""
    return [
        replace(level, cells=cell_anchors([size], aspect_ratios).numpy())
        for level, size in zip(levels, sizes, strict=True)
    ]
