"""What anchors and RoIs have in common on their way to being sampled.

B images, A candidates.
"""

import torch
from torch import Tensor

from mrcnn_lightning.ops.matching import IGNORED, NEGATIVE, BestMatches, Match, match, overlaps
from mrcnn_lightning.structures import Targets
from mrcnn_lightning.user_error import UserError


def match_targets(
    targets: Targets,
    candidates: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    best_matches: BestMatches,
    crowd_iou: float | None,
    strictly_above: bool = False,
    eligible: Tensor | None = None,
) -> Match:
    """As `ops.matching.match`, with the crowds' say.

    Args:
        targets: of the batch.
        candidates: (B, A, 4), or (A, 4) when all images share them.
        positive_iou: see `match`.
        negative_iou: see `match`.
        best_matches: see `match`.
        crowd_iou: candidates that overlap a crowd by this IoU or more are not background; None is
            all the same.
        strictly_above: see `match`.
        eligible: see `match`.
    """
    found = match(
        targets.boxes,
        targets.trainable,
        candidates,
        positive_iou=positive_iou,
        negative_iou=negative_iou,
        best_matches=best_matches,
        strictly_above=strictly_above,
        eligible=eligible,
    )
    if crowd_iou is None:
        return found
    crowded = overlaps(targets.boxes, targets.crowd, candidates, min_iou=crowd_iou)
    return found._replace(
        label=torch.where(crowded & (found.label == NEGATIVE), IGNORED, found.label)
    )


def require_sample(key: str, num: int, positive_fraction: float) -> None:
    """Refuse a sample of nothing, or a fraction that is none.

    Raises:
        UserError: it is so.
    """
    if num < 1 or not 0 < positive_fraction <= 1:
        raise UserError(
            f"{key}={num} positive_fraction={positive_fraction}: give 1 or more, and a fraction "
            "above 0 and up to 1"
        )
