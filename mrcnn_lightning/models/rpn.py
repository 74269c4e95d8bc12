"""The region proposal network (Faster R-CNN, section 3.1; on a pyramid as in FPN, section 4.1).

B images, L levels, A anchors of all levels, a anchors a cell, S sampled anchors, P proposals.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrcnn_lightning.ops import boxes as box_ops
from mrcnn_lightning.ops.anchors import anchor_grid, cell_anchors
from mrcnn_lightning.ops.losses import rpn_losses
from mrcnn_lightning.ops.matching import match
from mrcnn_lightning.ops.nms import batched_nms
from mrcnn_lightning.ops.precision import at_least_float32
from mrcnn_lightning.ops.sampling import SampledIndices, Stage, random_keys, sample
from mrcnn_lightning.structures import Batch, Targets

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class Anchors(nn.Module):
    """Anchors of a few sizes and shapes on every level.

    Args:
        sizes: for each level, the sides of its anchors in pixels.
        aspect_ratios: height over width.
    """

    def __init__(self, *, sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[float]) -> None:
        super().__init__()
        cells = [cell_anchors(level_sizes, aspect_ratios) for level_sizes in sizes]
        per_cell = {len(cell) for cell in cells}
        if len(per_cell) != 1:
            raise ValueError(f"model.rpn.anchors.sizes={sizes}: every level needs as many sizes")
        self.num_per_cell = per_cell.pop()
        self.register_buffer("cells", torch.stack(cells), persistent=False)  # (L, a, 4)
        self.cells: Tensor

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> Tensor:
        """All levels' anchors (A, 4) for a canvas of `image_size` (height, width)."""
        dtype = torch.promote_types(features[0].dtype, torch.float32)
        sizes = [(level.shape[2], level.shape[3]) for level in features]
        return anchor_grid(self.cells.to(dtype).unbind(), sizes, image_size)


class AnchorSampler:
    """Chooses the anchors to learn from (Faster R-CNN, sections 3.1.2 and 3.1.3).

    Args:
        num: sampled anchors an image.
        positive_fraction: at most this part of them is positive.
        positive_iou: an anchor is positive at this IoU with an object or above.
        negative_iou: an anchor is negative below this IoU with all objects.
        low_quality_matches: whether every object's best anchors are positive, whatever their IoU.
    """

    def __init__(
        self,
        *,
        num: int,
        positive_fraction: float,
        positive_iou: float,
        negative_iou: float,
        low_quality_matches: bool,
    ) -> None:
        self.num = num
        self.positive_fraction = positive_fraction
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.low_quality_matches = low_quality_matches

    def __call__(
        self, anchors: Tensor, targets: Targets, keys: Tensor
    ) -> tuple[SampledIndices, Tensor]:
        """The sample, and the object (B, S) that each sampled anchor overlaps most."""
        objects, label = match(
            targets.boxes,
            targets.trainable,
            anchors,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            low_quality_matches=self.low_quality_matches,
        )
        slots = torch.arange(len(anchors), device=anchors.device)
        random = random_keys(keys, Stage.ANCHORS, slots)
        chosen = sample(label, random, num=self.num, positive_fraction=self.positive_fraction)
        return chosen, objects.gather(1, chosen.indices)


class ProposalSelector:
    """Chooses the proposals: the best of each level, without duplicates.

    Args:
        candidates: best-scored anchors of each level that go into NMS, for prediction.
        candidates_in_training: the same for training.
        num: proposals an image that come out, for prediction.
        num_in_training: the same for training.
        nms_iou: of two overlapping by more than this, the lower score goes.
        min_side: smaller boxes are dropped, in pixels.
    """

    def __init__(
        self,
        *,
        candidates: int,
        candidates_in_training: int,
        num: int,
        num_in_training: int,
        nms_iou: float,
        min_side: float,
    ) -> None:
        self.candidates = (candidates, candidates_in_training)
        self.num = (num, num_in_training)
        self.nms_iou = nms_iou
        self.min_side = min_side

    def __call__(self, output: "RPNOutput", windows: Tensor, *, training: bool) -> "Proposals":
        """The proposals, best first."""
        indices, levels, first = [], [], 0
        for level, size in enumerate(output.level_sizes):
            scores = output.objectness[:, first : first + size]
            best = scores.topk(min(self.candidates[training], size), dim=1).indices + first
            indices.append(best)
            levels.append(torch.full_like(best[0], level))
            first += size
        index = torch.cat(indices, dim=1)
        deltas = output.deltas.gather(1, index[..., None].expand(-1, -1, 4))
        boxes = box_ops.decode(at_least_float32(deltas), output.anchors[index], DELTA_WEIGHTS)
        boxes = box_ops.clip(boxes, windows)
        scores = at_least_float32(output.objectness.gather(1, index))
        scores = torch.where(box_ops.is_at_least(boxes, self.min_side), scores, -torch.inf)
        kept, valid = batched_nms(
            boxes,
            scores,
            torch.cat(levels),
            iou_threshold=self.nms_iou,
            num=self.num[training],
        )
        boxes = boxes.gather(1, kept[..., None].expand(-1, -1, 4)) * valid[..., None]
        return Proposals(boxes, valid, index.gather(1, kept))


class RPNOutput(NamedTuple):
    """What the network says of every anchor."""

    anchors: Tensor  # (A, 4)
    objectness: Tensor  # (B, A) logits
    deltas: Tensor  # (B, A, 4)
    level_sizes: list[int]  # anchors of each level


class Proposals(NamedTuple):
    """Where objects may be."""

    boxes: Tensor  # (B, P, 4), zeros where there are fewer
    valid: Tensor  # (B, P) bool
    anchors: Tensor  # (B, P) int64, which anchor each of them was


class RPN(nn.Module):
    """One 3x3 convolution and two 1x1 convolutions shared by all levels.

    Args:
        in_channels: of every level.
        anchors: where the boxes start from.
        sampler: which anchors to learn from.
        selector: which boxes become proposals.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        anchors: Anchors,
        sampler: AnchorSampler,
        selector: ProposalSelector,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.sampler = sampler
        self.selector = selector
        self.conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.objectness = nn.Conv2d(in_channels, anchors.num_per_cell, 1)
        self.deltas = nn.Conv2d(in_channels, anchors.num_per_cell * 4, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int]) -> RPNOutput:
        """What the network says of every anchor of a canvas of `image_size` (height, width)."""
        objectness, deltas = [], []
        for level in features:
            hidden = F.relu(self.conv(level))
            # From (B, a * n, height, width) to the anchors' order: row, column, anchor.
            objectness.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(level), -1, 4))
        return RPNOutput(
            self.anchors(features, image_size),
            torch.cat(objectness, dim=1),
            torch.cat(deltas, dim=1),
            [level.shape[1] for level in objectness],
        )

    def loss(self, output: RPNOutput, targets: Targets, keys: Tensor) -> dict[str, Tensor]:
        """`loss_objectness` and `loss_rpn_box_reg`."""
        sampled, objects = self.sampler(output.anchors, targets, keys)
        boxes = targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4))  # (B, S, 4)
        return rpn_losses(
            output.objectness.gather(1, sampled.indices),
            output.deltas.gather(1, sampled.indices[..., None].expand(-1, -1, 4)),
            box_ops.encode(boxes, output.anchors[sampled.indices], DELTA_WEIGHTS),
            sampled.positive,
            sampled.valid,
        )

    @torch.no_grad()
    def propose(self, output: RPNOutput, batch: Batch, *, training: bool) -> Proposals:
        """The proposals, best first."""
        return self.selector(output, batch.windows, training=training)
