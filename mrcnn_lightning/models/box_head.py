"""The box head: classifies RoIs and refines their boxes (Fast R-CNN; two layers as in FPN).

B images, R RoIs, K classes, D detections.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrcnn_lightning.models.poolers import image_indices
from mrcnn_lightning.models.roi_sampler import SampledRoIs
from mrcnn_lightning.ops import boxes as box_ops
from mrcnn_lightning.ops.losses import box_losses
from mrcnn_lightning.ops.nms import batched_nms
from mrcnn_lightning.ops.precision import at_least_float32
from mrcnn_lightning.structures import Detections, Targets

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class DetectionSelector:
    """Chooses the detections: confident boxes of each class, without duplicates.

    Args:
        min_score: a class's probability must be above it.
        nms_iou: of two of one class overlapping by more than this, the lower score goes.
        num: detections an image, at most.
        min_side: smaller boxes are dropped, in pixels.
    """

    def __init__(self, *, min_score: float, nms_iou: float, num: int, min_side: float) -> None:
        self.min_score = min_score
        self.nms_iou = nms_iou
        self.num = num
        self.min_side = min_side

    def __call__(self, scores: Tensor, boxes: Tensor, valid: Tensor) -> Detections:
        """Detections without masks.

        Args:
            scores: (B, R, K) probabilities.
            boxes: (B, R, K, 4), a box for each class, cut to the image.
            valid: (B, R) bool.
        """
        num_rois, num_classes = scores.shape[1:]
        keep = (scores > self.min_score) & box_ops.is_at_least(boxes, self.min_side)
        keep &= valid[..., None]
        classes = torch.arange(1, num_classes + 1, device=scores.device).repeat(num_rois)
        boxes, scores = boxes.flatten(1, 2), scores.flatten(1)  # (B, R * K, ...)
        index, found = batched_nms(
            boxes,
            torch.where(keep.flatten(1), scores, -torch.inf),
            classes,
            iou_threshold=self.nms_iou,
            num=self.num,
        )
        return Detections(
            boxes=boxes.gather(1, index[..., None].expand(-1, -1, 4)) * found[..., None],
            scores=scores.gather(1, index) * found,
            labels=classes[index] * found,
            masks=None,
        )


class BoxHead(nn.Module):
    """Two fully connected layers, then a score and a box for each class.

    Args:
        in_channels: of the features.
        strides: of the levels that RoIs are cut from.
        num_classes: K.
        pooler: makes the pooler from the strides.
        hidden: units of both layers.
        selector: which boxes become detections.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        strides: Sequence[int],
        num_classes: int,
        pooler: Callable[..., Any],
        hidden: int,
        selector: DetectionSelector,
    ) -> None:
        super().__init__()
        self.pooler = pooler(strides=strides)
        self.selector = selector
        self.fc1 = nn.Linear(in_channels * self.pooler.output_size**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.classifier = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, num_classes * 4)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, R, K + 1), background first, and deltas (B, R, K, 4) of boxes (B, R, 4)."""
        pooled = self.pooler(features, boxes.flatten(0, 1), image_indices(boxes))
        hidden = F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))  # (B * R, hidden)
        shape = boxes.shape[:2]
        return self.classifier(hidden).unflatten(0, shape), self.deltas(hidden).view(*shape, -1, 4)

    def loss(
        self, features: Sequence[Tensor], rois: SampledRoIs, targets: Targets
    ) -> dict[str, Tensor]:
        """`loss_classifier` and `loss_box_reg`."""
        logits, deltas = self(features, rois.boxes)
        boxes = targets.boxes.gather(1, rois.objects[..., None].expand(-1, -1, 4))  # (B, R, 4)
        target_deltas = box_ops.encode(boxes, rois.boxes, DELTA_WEIGHTS)
        return box_losses(logits, deltas, rois.labels, target_deltas, rois.valid)

    def predict(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, windows: Tensor
    ) -> Detections:
        """Detections without masks, from proposals (B, R, 4) where `valid` (B, R) is true."""
        logits, deltas = self(features, proposals)
        scores = at_least_float32(logits).softmax(dim=-1)[..., 1:]  # (B, R, K)
        boxes = box_ops.decode(at_least_float32(deltas), proposals[:, :, None], DELTA_WEIGHTS)
        boxes = box_ops.clip(boxes.flatten(1, 2), windows).view(boxes.shape)
        return self.selector(scores, boxes, valid)
