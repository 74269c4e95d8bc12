"""The five losses, pure and unweighted.

B images, S sampled anchors, R sampled RoIs, N positive RoIs, K classes, m mask side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mrcnn_lightning.ops.precision import at_least_float32

# Where the box losses turn from quadratic to linear (Detectron's and torchvision's 1/9).
SMOOTH_L1_BETA = 1 / 9


def _mean(losses: Tensor, counted: Tensor, denominator: Tensor) -> Tensor:
    """Sum of the losses that count over a number, 0 (and still connected) where none does."""
    total = torch.where(counted, losses, losses.new_zeros(())).sum()
    return total / denominator.clamp(min=1).to(losses.dtype)


def rpn_losses(
    objectness: Tensor, deltas: Tensor, target_deltas: Tensor, positive: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Losses of the region proposal network (Faster R-CNN, equation 1), both over all sampled.

    Args:
        objectness: (B, S) logits of the sampled anchors.
        deltas: (B, S, 4) predicted.
        target_deltas: (B, S, 4), looked at where positive.
        positive: (B, S) bool.
        valid: (B, S) bool, places of the sample that are in use.
    """
    objectness, deltas = at_least_float32(objectness), at_least_float32(deltas)
    num_sampled = valid.sum()
    classification = F.binary_cross_entropy_with_logits(
        objectness, positive.to(objectness.dtype), reduction="none"
    )
    regression = F.smooth_l1_loss(deltas, target_deltas, beta=SMOOTH_L1_BETA, reduction="none")
    return {
        "loss_objectness": _mean(classification, valid, num_sampled),
        "loss_rpn_box_reg": _mean(regression, positive[..., None], num_sampled),
    }


def box_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, target_deltas: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Losses of the box head (Fast R-CNN, section 2.3), both over all sampled RoIs.

    Args:
        logits: (B, R, K + 1), background first.
        deltas: (B, R, K, 4), per class.
        labels: (B, R) int64, 0 for background.
        target_deltas: (B, R, 4), looked at where the label is a class.
        valid: (B, R) bool, places of the sample that are in use.
    """
    logits, deltas = at_least_float32(logits), at_least_float32(deltas)
    num_sampled = valid.sum()
    classification = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    of_class = (labels - 1).clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
    regression = F.smooth_l1_loss(
        deltas.gather(2, of_class)[:, :, 0], target_deltas, beta=SMOOTH_L1_BETA, reduction="none"
    )
    positive = valid & (labels > 0)
    return {
        "loss_classifier": _mean(classification, valid.flatten(), num_sampled),
        "loss_box_reg": _mean(regression, positive[..., None], num_sampled),
    }


def mask_loss(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Binary cross-entropy of the true class's mask (Mask R-CNN, section 3).

    Args:
        logits: (N, m, m) of the positive RoIs.
        targets: (N, m, m) in [0, 1].
    """
    logits = at_least_float32(logits)
    total = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")
    return {"loss_mask": total / max(logits.numel(), 1)}
