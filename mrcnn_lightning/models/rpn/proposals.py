"""Proposals: the boxes of the RPN that may be objects.

B images, A anchors of all levels, P proposals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mrcnn_lightning.ops import boxes as box_ops
from mrcnn_lightning.ops.nms import batched_nms
from mrcnn_lightning.ops.precision import at_least_float32


class RPNOutput(NamedTuple):
    """What the network says of every anchor."""

    anchors: Tensor  # (A, 4)
    objectness: Tensor  # (B, A) logits
    deltas: Tensor  # (B, A, 4)
    delta_weights: Sequence[float]
    level_sizes: list[int]  # anchors of each level
    image_size: tuple[int, int]  # height and width of the canvas


class Proposals(NamedTuple):
    """Where objects may be."""

    boxes: Tensor  # (B, P, 4), zeros where there are fewer
    valid: Tensor  # (B, P) bool
    anchors: Tensor  # (B, P) int64, which anchor each of them was


@dataclass(kw_only=True)
class ProposalSelector:
    """Chooses the proposals: the best boxes, without duplicates.

    Args:
        pre_nms_topk: best-scored anchors of each level that go into NMS, for prediction.
        pre_nms_topk_in_training: the same for training.
        num_proposals: an image, after NMS, for prediction.
        num_proposals_in_training: the same for training.
        nms_iou: of two overlapping by more than this, the lower score goes.
        min_side: smaller boxes are dropped, in pixels.
        min_side_first: whether they are dropped before the candidates are chosen (py-faster-rcnn)
            instead of after it, so that all candidates are large enough.
        min_score: less probable boxes are dropped.
        across_levels: whether candidates are counted, and suppress each other, over all levels
            together instead of level by level.
        clip_to_canvas: whether boxes are cut to the padded canvas instead of the image.
    """

    pre_nms_topk: int
    pre_nms_topk_in_training: int
    num_proposals: int
    num_proposals_in_training: int
    nms_iou: float
    min_side: float
    min_side_first: bool
    min_score: float
    across_levels: bool
    clip_to_canvas: bool

    def __call__(self, output: RPNOutput, windows: Tensor, *, training: bool) -> Proposals:
        """The proposals, best first.

        Args:
            output: of the RPN.
            windows: (B, 4), the images.
            training: which of the numbers hold.
        """
        objectness = output.objectness
        if self.min_side_first:
            every = torch.arange(objectness.shape[1], device=objectness.device)
            boxes = self._boxes(output, every.expand(objectness.shape[0], -1), windows)
            is_small = ~box_ops.is_at_least(boxes, self.min_side)
            objectness = objectness.masked_fill(is_small, -torch.inf)
        index, levels = self._best(
            objectness,
            output.level_sizes,
            self.pre_nms_topk_in_training if training else self.pre_nms_topk,
        )
        boxes = self._boxes(output, index, windows)
        scores = at_least_float32(objectness.gather(1, index))
        kept = box_ops.is_at_least(boxes, self.min_side) & (scores.sigmoid() >= self.min_score)
        kept &= box_ops.has_area(windows)[:, None]  # others only fill the batch up
        kept, valid = batched_nms(
            boxes,
            torch.where(kept, scores, -torch.inf),
            levels,
            iou_threshold=self.nms_iou,
            num=self.num_proposals_in_training if training else self.num_proposals,
        )
        boxes = boxes.gather(1, kept[..., None].expand(-1, -1, 4))
        boxes = torch.where(valid[..., None], boxes, 0.0)
        return Proposals(boxes, valid, index.gather(1, kept))

    def _boxes(self, output: RPNOutput, index: Tensor, windows: Tensor) -> Tensor:
        """The boxes (B, N, 4) of some anchors (B, N), cut to the images."""
        deltas = output.deltas.gather(1, index[..., None].expand(-1, -1, 4))
        boxes = box_ops.decode(
            at_least_float32(deltas), output.anchors[index], output.delta_weights
        )
        return box_ops.clip(boxes, _canvas(output, windows) if self.clip_to_canvas else windows)

    def _best(
        self, objectness: Tensor, level_sizes: Sequence[int], num: int
    ) -> tuple[Tensor, Tensor]:
        """Anchors (B, N) with the highest scores, and the group (N,) in which NMS compares them."""
        sizes = [sum(level_sizes)] if self.across_levels else level_sizes
        indices, groups, first = [], [], 0
        for group, size in enumerate(sizes):
            scores = objectness[:, first : first + size]
            best = scores.topk(min(num, size), dim=1).indices + first
            indices.append(best)
            groups.append(torch.full_like(best[0], group))
            first += size
        return torch.cat(indices, dim=1), torch.cat(groups)


def _canvas(output: RPNOutput, windows: Tensor) -> Tensor:
    """The whole canvas, for every image (B, 4)."""
    height, width = output.image_size
    canvas = torch.zeros_like(windows)
    canvas[:, 2], canvas[:, 3] = width, height
    return canvas
