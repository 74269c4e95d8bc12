"""Which regions of interest the heads learn from, and what each of them stands for.

B images, P proposals, G padded objects, R sampled RoIs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mrcnn_lightning.models.matching import match_targets, require_sample
from mrcnn_lightning.models.rpn.proposals import Proposals
from mrcnn_lightning.ops.matching import IGNORED, BestMatches
from mrcnn_lightning.ops.sampling import Stage, random_keys, sample
from mrcnn_lightning.structures import Targets

# Names objects among anchors when numbers are drawn; no image has so many anchors.
_FIRST_OBJECT = 2**30


@dataclass
class SampledRoIs:
    """RoIs to learn from: positives first, then background, then unused places."""

    boxes: Tensor  # (B, R, 4)
    labels: Tensor  # (B, R) int64, 0 for background and unused places
    matched_gt: Tensor  # (B, R) int64, the object that the RoI overlaps most
    valid: Tensor  # (B, R) bool
    most_positive: int  # of an image


@dataclass(kw_only=True)
class RoISampler:
    """Random RoIs with a bounded part of positives (Fast R-CNN, section 2.3).

    Args:
        num_rois: sampled RoIs an image.
        positive_fraction: at most this part of them is positive.
        positive_iou: a RoI is positive at this IoU with an object or above.
        negative_iou: a RoI is background below this IoU with all objects.
        add_ground_truth: whether the objects' own boxes join the proposals.
        keep_proportion: whether there are only as many background RoIs as make the positives
            their fraction (Matterport's), instead of filling up.
        crowd_iou: RoIs that overlap a crowd by this IoU or more are not background; None is all
            the same.

    Raises:
        UserError: a number is out of range.
    """

    num_rois: int
    positive_fraction: float
    positive_iou: float
    negative_iou: float
    add_ground_truth: bool
    keep_proportion: bool
    crowd_iou: float | None

    def __post_init__(self) -> None:
        require_sample("num_rois", self.num_rois, self.positive_fraction)

    @torch.no_grad()
    def __call__(self, proposals: Proposals, targets: Targets, seeds: Tensor) -> SampledRoIs:
        """Sample from proposals.

        What is drawn for a proposal depends on its anchor, not on its rank: two that change places
        because their scores are nearly equal (in another precision, say) leave the sample as it is.
        """
        boxes, valid, slots = proposals
        if self.add_ground_truth:
            boxes = torch.cat([boxes, targets.boxes], dim=1)
            valid = torch.cat([valid, targets.trainable], dim=1)
            objects = torch.arange(targets.boxes.shape[1], device=slots.device) + _FIRST_OBJECT
            slots = torch.cat([slots, objects.expand(len(slots), -1)], dim=1)
        matched_gt, label = match_targets(
            targets,
            boxes,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            best_matches=BestMatches.NONE,
            crowd_iou=self.crowd_iou,
        )
        label = torch.where(valid, label, IGNORED)
        random = random_keys(seeds, Stage.ROIS, slots)
        chosen = sample(
            label,
            random,
            num=self.num_rois,
            positive_fraction=self.positive_fraction,
            keep_proportion=self.keep_proportion,
        )
        # Unused places repeat used ones, or they would count in the heads' batch norms.
        num_used = chosen.valid.sum(dim=1, keepdim=True).clamp(min=1)
        place = torch.arange(chosen.indices.shape[1], device=boxes.device) % num_used
        indices = chosen.indices.gather(1, place)
        matched_gt = matched_gt.gather(1, indices)
        return SampledRoIs(
            boxes=boxes.gather(1, indices[..., None].expand(-1, -1, 4)),
            labels=targets.labels.gather(1, matched_gt) * chosen.positive,
            matched_gt=matched_gt,
            valid=chosen.valid,
            most_positive=int(chosen.indices.shape[1] * self.positive_fraction),
        )
