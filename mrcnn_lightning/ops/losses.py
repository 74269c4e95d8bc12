"""The losses, pure and unweighted.

B images, S sampled anchors, R sampled RoIs, N positive RoIs, K classes, m mask side.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from mrcnn_lightning.ops import boxes as box_ops
from mrcnn_lightning.ops.precision import at_least_float32


def mean_where(losses: Tensor, counted: Tensor, denominator: Tensor) -> Tensor:
    """Sum of the losses that count over a number, 0 (and still connected) where none does."""
    total = torch.where(counted, losses, losses.new_zeros(())).sum()
    return total / denominator.clamp(min=1).to(losses.dtype)


def objectness_loss(objectness: Tensor, positive: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of object or not, a mean over the sample (Faster R-CNN, equation 1).

    Args:
        objectness: (B, S) logits of the sampled anchors; with two logits an anchor, foreground
            less background.
        positive: (B, S) bool.
        valid: (B, S) bool, places of the sample that are in use.
    """
    objectness = at_least_float32(objectness)
    losses = F.binary_cross_entropy_with_logits(
        objectness, positive.to(objectness.dtype), reduction="none"
    )
    return mean_where(losses, valid, valid.sum())


def classification_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of the class, a mean over the sample (Fast R-CNN, section 2.3).

    Args:
        logits: (B, R, K + 1), background first.
        labels: (B, R) int64, 0 for background.
        valid: (B, R) bool, places of the sample that are in use.
    """
    logits = at_least_float32(logits)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return mean_where(losses, valid.flatten(), valid.sum())


def smooth_l1(
    deltas: Tensor, anchors: Tensor, boxes: Tensor, *, weights: Sequence[float], beta: float
) -> Tensor:
    """Smooth L1 distance of predicted and wanted deltas, summed over the four of them.

    Args:
        deltas: (..., 4) predicted.
        anchors: (..., 4) that they correct.
        boxes: (..., 4) that they should make of them.
        weights: of the deltas.
        beta: where the loss turns from quadratic to linear; 0 is the L1 distance.

    Returns:
        (...)
    """
    wanted = box_ops.encode(boxes, anchors, weights)
    return F.smooth_l1_loss(deltas, wanted, beta=beta, reduction="none").sum(-1)


def giou(deltas: Tensor, anchors: Tensor, boxes: Tensor, *, weights: Sequence[float]) -> Tensor:
    """One less the generalised IoU of predicted and wanted boxes (Rezatofighi et al. 2019).

    Arguments and result as for `smooth_l1`.
    """
    found = box_ops.decode(deltas, anchors, weights)
    loss: Tensor = torchvision.ops.generalized_box_iou_loss(found, boxes)
    return loss


def mask_loss(logits: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
    """Binary cross-entropy of the true class's mask (Mask R-CNN, section 3).

    Args:
        logits: (N, m, m) of RoIs.
        targets: (N, m, m) in [0, 1].
        positive: (N,) bool, the RoIs that count.
    """
    logits = at_least_float32(logits)
    losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    cells = positive.sum() * (logits.shape[1] * logits.shape[2])
    return mean_where(losses, positive[:, None, None], cells)
