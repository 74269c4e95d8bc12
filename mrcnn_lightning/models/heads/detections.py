"""Detections: which refined boxes are objects.

B images, R RoIs, K classes, D detections.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mrcnn_lightning.ops import boxes as box_ops
from mrcnn_lightning.ops.nms import batched_nms
from mrcnn_lightning.structures import Detections


@dataclass(kw_only=True)
class DetectionSelector:
    """Every confident class of every RoI, without duplicates (Fast R-CNN).

    Args:
        min_score: a class's probability must be above it.
        nms_iou: of two of one class overlapping by more than this, the lower score goes.
        num_detections: an image, at most.
        min_side: smaller boxes are dropped, in pixels.
    """

    min_score: float
    nms_iou: float
    num_detections: int
    min_side: float

    def __call__(self, scores: Tensor, boxes: Tensor, valid: Tensor) -> Detections:
        """Detections without masks.

        Args:
            scores: (B, R, K + 1) probabilities, background first.
            boxes: (B, R, K, 4), a box for each class, or (B, R, 1, 4) for all; cut to the image.
            valid: (B, R) bool.
        """
        scores = scores[..., 1:]
        num_rois, num_classes = scores.shape[1:]
        keep = (scores > self.min_score) & box_ops.is_at_least(boxes, self.min_side)
        keep &= valid[..., None]
        boxes = boxes.expand(-1, -1, num_classes, -1).flatten(1, 2)  # (B, R * K, 4)
        labels = torch.arange(1, num_classes + 1, device=scores.device).repeat(num_rois)
        return _without_duplicates(
            boxes,
            scores.flatten(1),
            labels.expand(boxes.shape[0], -1),
            keep.flatten(1),
            nms_iou=self.nms_iou,
            num=self.num_detections,
        )


@dataclass(kw_only=True)
class ArgmaxSelector:
    """The best class of every RoI, with boxes of whole pixels (Matterport's).

    Args:
        min_score: the best class's probability must be at least this.
        nms_iou: of two of one class overlapping by more than this, the lower score goes.
        num_detections: an image, at most.
    """

    min_score: float
    nms_iou: float
    num_detections: int

    def __call__(self, scores: Tensor, boxes: Tensor, valid: Tensor) -> Detections:
        """Detections without masks; arguments as for `DetectionSelector`."""
        best, labels = scores.max(dim=2)  # (B, R)
        row = (labels - 1).clamp(min=0, max=boxes.shape[2] - 1)[..., None, None]
        boxes = boxes.gather(2, row.expand(-1, -1, 1, 4))[:, :, 0].round()
        keep = valid & (labels > 0) & (best >= self.min_score)
        return _without_duplicates(
            boxes, best, labels, keep, nms_iou=self.nms_iou, num=self.num_detections
        )


def _without_duplicates(
    boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, *, nms_iou: float, num: int
) -> Detections:
    """Of boxes (B, N, 4) with scores and labels (B, N), the best that `keep` (B, N) allows."""
    index, found = batched_nms(
        boxes,
        torch.where(keep, scores, -torch.inf),
        labels,
        iou_threshold=nms_iou,
        num=num,
    )
    boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return Detections(
        boxes=torch.where(found[..., None], boxes, 0.0),
        scores=torch.where(found, scores.gather(1, index), 0.0),
        labels=labels.gather(1, index) * found,
        masks=None,
    )
