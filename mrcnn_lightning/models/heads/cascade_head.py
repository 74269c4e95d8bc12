"""The cascade: box heads in a row, each on the boxes of the one before (Cai and Vasconcelos 2018).

B images, R RoIs, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mrcnn_lightning.models.box_losses import GIoULoss, SmoothL1Loss
from mrcnn_lightning.models.heads.box_head import BoxBranch
from mrcnn_lightning.models.heads.detections import ArgmaxSelector, DetectionSelector
from mrcnn_lightning.models.heads.roi_features import RoIFeatures
from mrcnn_lightning.models.heads.roi_sampler import SampledRoIs
from mrcnn_lightning.models.roi_stage import RoIStage
from mrcnn_lightning.ops.boxes import has_area
from mrcnn_lightning.ops.matching import POSITIVE, BestMatches, match
from mrcnn_lightning.ops.precision import at_least_float32
from mrcnn_lightning.structures import Detections, Targets
from mrcnn_lightning.user_error import UserError


class CascadeBoxHead(nn.Module):
    """Stages of growing quality with one box for all classes (Detectron2's form).

    Args:
        strides: of the levels that RoIs are cut from.
        roi_stage: what pooled features go through first.
        num_classes: K.
        pooler: makes the pooler from the strides.
        trunk: makes a stage's trunk from `in_channels` and `size`.
        ious: for each stage, the IoU from which on a RoI is positive; the first is the RoI
            sampler's.
        delta_weights: for each stage, what deltas are multiplied by.
        box_loss: of the deltas.
        selector: which boxes become detections.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        roi_stage: RoIStage,
        num_classes: int,
        pooler: Callable[..., Any],
        trunk: Callable[..., Any],
        ious: Sequence[float],
        delta_weights: Sequence[Sequence[float]],
        box_loss: SmoothL1Loss | GIoULoss,
        selector: DetectionSelector | ArgmaxSelector,
    ) -> None:
        super().__init__()
        if len(ious) != len(delta_weights):
            raise UserError(
                f"model.box_head.ious={ious} and delta_weights={delta_weights}: give one of each "
                "for every stage"
            )
        self.roi_features = RoIFeatures(strides=strides, roi_stage=roi_stage, pooler=pooler)
        shape = {"in_channels": self.roi_features.out_channels, "size": self.roi_features.size}
        self.ious = ious
        self.branches = nn.ModuleList(
            BoxBranch(
                trunk=trunk(**shape),
                num_classes=num_classes,
                class_agnostic=True,
                delta_weights=weights,
                box_loss=box_loss,
            )
            for weights in delta_weights
        )
        self.selector = selector

    def compile(self, **options: Any) -> None:
        """Have `torch.compile` make kernels for the stages, which are called one by one."""
        for branch in self.branches:
            branch.compile(**options)

    def _stage(
        self, features: Sequence[Tensor], boxes: Tensor, branch: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, R, K + 1) and deltas (B, R, 1, 4) of boxes (B, R, 4)."""
        pooled = self.roi_features.of_images(features, boxes)
        if pooled.requires_grad:  # the stages' losses add up in the branches, not in the features
            share = 1 / len(self.branches)
            pooled = pooled * share + pooled.detach() * (1 - share)
        logits, deltas = branch(pooled, boxes.shape[0])
        return logits, deltas

    def loss(
        self, features: Sequence[Tensor], rois: SampledRoIs, targets: Targets, windows: Tensor
    ) -> dict[str, Tensor]:
        """`loss_classifier_stage1`, `loss_box_reg_stage1` and so on."""
        losses, boxes = {}, rois.boxes
        for stage, (branch, iou) in enumerate(zip(self.branches, self.ious, strict=True), start=1):
            assert isinstance(branch, BoxBranch)
            if stage > 1:
                rois = _relabelled(boxes, rois, targets, positive_iou=iou)
            logits, deltas = self._stage(features, rois.boxes, branch)
            boxes = branch.boxes(deltas.detach(), rois.boxes, windows)[:, :, 0]
            for name, loss in branch.loss(logits, deltas, rois, targets).items():
                losses[f"{name}_stage{stage}"] = loss
        return losses

    def predict(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, windows: Tensor
    ) -> Detections:
        """Detections without masks: the mean of all stages' scores, and the last stage's boxes."""
        scores, boxes = [], proposals
        for branch in self.branches:
            assert isinstance(branch, BoxBranch)
            logits, deltas = self._stage(features, boxes, branch)
            scores.append(at_least_float32(logits).softmax(dim=-1))
            boxes = branch.boxes(deltas, boxes, windows)[:, :, 0]
        return self.selector(torch.stack(scores).mean(0), boxes[:, :, None], valid)


@torch.no_grad()
def _relabelled(
    boxes: Tensor, rois: SampledRoIs, targets: Targets, *, positive_iou: float
) -> SampledRoIs:
    """RoIs that have moved to boxes (B, R, 4), with the objects that they overlap now.

    Those that the image's edge has cut to nothing are no longer used.
    """
    matched_gt, label = match(
        targets.boxes,
        targets.trainable,
        boxes,
        positive_iou=positive_iou,
        negative_iou=positive_iou,
        best_matches=BestMatches.NONE,
    )
    valid = rois.valid & has_area(boxes)
    labels = targets.labels.gather(1, matched_gt) * ((label == POSITIVE) & valid)
    return SampledRoIs(
        boxes=boxes,
        labels=labels,
        matched_gt=matched_gt,
        valid=valid,
        most_positive=boxes.shape[1],  # which no longer come first
    )
