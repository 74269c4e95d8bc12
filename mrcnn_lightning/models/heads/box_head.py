"""The box head: classifies RoIs and refines their boxes (Fast R-CNN).

B images, R RoIs, K classes, c boxes a RoI (K, or 1 for all classes).
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mrcnn_lightning.models.box_losses import GIoULoss, SmoothL1Loss
from mrcnn_lightning.models.heads.class_rows import num_rows, row_of
from mrcnn_lightning.models.heads.detections import ArgmaxSelector, DetectionSelector
from mrcnn_lightning.models.heads.roi_features import RoIFeatures
from mrcnn_lightning.models.heads.roi_sampler import SampledRoIs
from mrcnn_lightning.models.heads.trunks import Average
from mrcnn_lightning.models.roi_stage import RoIStage
from mrcnn_lightning.ops import boxes as box_ops
from mrcnn_lightning.ops.losses import classification_loss
from mrcnn_lightning.ops.precision import at_least_float32
from mrcnn_lightning.structures import Detections, Targets
from mrcnn_lightning.user_error import UserError


class BoxBranch(nn.Module):
    """A trunk, then a score for each class and a box for each class or one for all.

    Args:
        trunk: pooled features to a vector.
        num_classes: K.
        class_agnostic: whether all classes share one box, or each has its own.
        delta_weights: what deltas are multiplied by.
        box_loss: of the deltas.
    """

    def __init__(
        self,
        *,
        trunk: Any,
        num_classes: int,
        class_agnostic: bool,
        delta_weights: Sequence[float],
        box_loss: SmoothL1Loss | GIoULoss,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.class_agnostic = class_agnostic
        self.delta_weights = delta_weights
        self.box_loss = box_loss
        self.classifier = nn.Linear(trunk.out_channels, num_classes + 1)
        self.deltas = nn.Linear(
            trunk.out_channels, num_rows(num_classes, class_agnostic=class_agnostic) * 4
        )
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, pooled: Tensor, num_images: int) -> tuple[Tensor, Tensor]:
        """Logits (B, R, K + 1), background first, and deltas (B, R, c, 4).

        Args:
            pooled: (B * R, C, P, P).
            num_images: B.
        """
        hidden = self.trunk(pooled)  # (B * R, C)
        logits, deltas = self.classifier(hidden), self.deltas(hidden)
        shape = (num_images, hidden.shape[0] // num_images)
        return logits.view(*shape, logits.shape[1]), deltas.view(*shape, deltas.shape[1] // 4, 4)

    def loss(
        self, logits: Tensor, deltas: Tensor, rois: SampledRoIs, targets: Targets
    ) -> dict[str, Tensor]:
        """`loss_classifier` and `loss_box_reg` of the RoIs that these logits and deltas are of."""
        row = row_of(rois.labels, class_agnostic=self.class_agnostic)
        return {
            "loss_classifier": classification_loss(logits, rois.labels, rois.valid),
            "loss_box_reg": self.box_loss(
                deltas.gather(2, row[..., None, None].expand(-1, -1, 1, 4))[:, :, 0],
                rois.boxes,
                targets.boxes.gather(1, rois.matched_gt[..., None].expand(-1, -1, 4)),
                weights=self.delta_weights,
                positive=rois.valid & (rois.labels > 0),
                valid=rois.valid,
            ),
        }

    def boxes(self, deltas: Tensor, rois: Tensor, windows: Tensor) -> Tensor:
        """The boxes (B, R, K or 1, 4), cut to the images, that deltas make of RoIs (B, R, 4)."""
        boxes = box_ops.decode(at_least_float32(deltas), rois[:, :, None], self.delta_weights)
        return box_ops.clip(boxes.flatten(1, 2), windows).view(boxes.shape)


class BoxHead(nn.Module):
    """Pools RoIs, classifies them and refines their boxes once.

    Args:
        strides: of the levels that RoIs are cut from.
        roi_stage: what pooled features go through first.
        num_classes: K.
        pooler: makes the pooler from the strides.
        trunk: makes the trunk from `in_channels` and `size`.
        class_agnostic: whether all classes share one box, or each has its own.
        delta_weights: what deltas are multiplied by.
        box_loss: of the deltas.
        selector: which boxes become detections.

    Raises:
        UserError: the trunk's features are the stage's, and there is no stage.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        roi_stage: RoIStage,
        num_classes: int,
        pooler: Callable[..., Any],
        trunk: Callable[..., Any],
        class_agnostic: bool,
        delta_weights: Sequence[float],
        box_loss: SmoothL1Loss | GIoULoss,
        selector: DetectionSelector | ArgmaxSelector,
    ) -> None:
        super().__init__()
        self.roi_features = RoIFeatures(strides=strides, roi_stage=roi_stage, pooler=pooler)
        shape = {"in_channels": self.roi_features.out_channels, "size": self.roi_features.size}
        self.branch = BoxBranch(
            trunk=trunk(**shape),
            num_classes=num_classes,
            class_agnostic=class_agnostic,
            delta_weights=delta_weights,
            box_loss=box_loss,
        )
        self.selector = selector
        if isinstance(self.branch.trunk, Average) and isinstance(roi_stage.layers, nn.Identity):
            raise UserError(
                "the box head takes the mean of what the backbone's last stage makes of a RoI, and "
                "this backbone has no such stage: give one that has, backbone=resnet50_caffe_c4"
            )

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, R, K + 1), background first, and deltas (B, R, c, 4) of boxes (B, R, 4)."""
        pooled = self.roi_features.of_images(features, boxes)
        logits, deltas = self.branch(pooled, boxes.shape[0])
        return logits, deltas

    def loss(
        self, features: Sequence[Tensor], rois: SampledRoIs, targets: Targets, windows: Tensor
    ) -> dict[str, Tensor]:
        """`loss_classifier` and `loss_box_reg`."""
        logits, deltas = self(features, rois.boxes)
        return self.branch.loss(logits, deltas, rois, targets)

    def predict(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, windows: Tensor
    ) -> Detections:
        """Detections without masks, from proposals (B, R, 4) where `valid` (B, R) is true."""
        logits, deltas = self(features, proposals)
        scores = at_least_float32(logits).softmax(dim=-1)
        return self.selector(scores, self.branch.boxes(deltas, proposals, windows), valid)
