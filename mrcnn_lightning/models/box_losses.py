"""Box losses: how far predicted deltas are from where they should be.

B images, N sampled anchors or RoIs.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from mrcnn_lightning.ops.losses import giou, mean_where, smooth_l1
from mrcnn_lightning.ops.precision import at_least_float32
from mrcnn_lightning.user_error import UserError

Mean = Literal["sampled", "positives"]


def _require_known(mean_over: str) -> None:
    if mean_over not in get_args(Mean):
        raise UserError(f"box_loss.mean_over={mean_over} is not one of {', '.join(get_args(Mean))}")


class SmoothL1Loss:
    """Smooth L1 distance of deltas (Fast R-CNN, equation 3).

    Args:
        beta: where it turns from quadratic to linear; 0 is the L1 loss.
        mean_over: the sum over positives is divided by the number of all `sampled` (equation 1 of
            Faster R-CNN), or by that of the `positives`' deltas, four each.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(self, *, beta: float, mean_over: Mean) -> None:
        if beta < 0:
            raise UserError(f"box_loss.beta={beta} is less than 0")
        _require_known(mean_over)
        self.beta = beta
        self.mean_over = mean_over

    def __call__(
        self,
        deltas: Tensor,
        anchors: Tensor,
        boxes: Tensor,
        *,
        weights: Sequence[float],
        positive: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            deltas: (B, N, 4) predicted.
            anchors: (B, N, 4) that they correct.
            boxes: (B, N, 4) that they should make of them, looked at where positive.
            weights: of the deltas.
            positive: (B, N) bool.
            valid: (B, N) bool, places of the sample that are in use.
        """
        deltas = at_least_float32(deltas)
        losses = smooth_l1(deltas, anchors, boxes, weights=weights, beta=self.beta)
        num = valid.sum() if self.mean_over == "sampled" else 4 * positive.sum()
        return mean_where(losses, positive, num)


class GIoULoss:
    """One less the generalised IoU of boxes (Rezatofighi et al. 2019).

    Args:
        mean_over: the sum over positives is divided by the number of all `sampled`, or of the
            `positives`.

    Raises:
        UserError: there is no such mean.
    """

    def __init__(self, *, mean_over: Mean) -> None:
        _require_known(mean_over)
        self.mean_over = mean_over

    def __call__(
        self,
        deltas: Tensor,
        anchors: Tensor,
        boxes: Tensor,
        *,
        weights: Sequence[float],
        positive: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """The loss, a scalar; arguments as for `SmoothL1Loss`."""
        losses = giou(at_least_float32(deltas), anchors, boxes, weights=weights)
        num = valid.sum() if self.mean_over == "sampled" else positive.sum()
        return mean_where(losses, positive, num)
