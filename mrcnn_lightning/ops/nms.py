"""Non-maximum suppression for a batch.

B images, N candidates, S kept.
"""

import torch
import torchvision
from torch import Tensor


def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, iou_threshold: float, num: int
) -> tuple[Tensor, Tensor]:
    """The best `num` boxes an image that no better box of their own group overlaps too much.

    Args:
        boxes: (B, N, 4).
        scores: (B, N); -inf marks what is no candidate.
        groups: (B, N) or (N,) int64; boxes of different groups never suppress each other.
        iou_threshold: above it the lower score goes.
        num: S.

    Returns:
        index (B, S) int64, best first, and valid (B, S) bool.
    """
    index = torch.zeros(len(boxes), num, dtype=torch.int64, device=boxes.device)
    valid = torch.zeros(len(boxes), num, dtype=torch.bool, device=boxes.device)
    for image, group in enumerate(groups.expand(len(boxes), -1)):
        candidates = torch.nonzero(scores[image] > -torch.inf).squeeze(1)
        kept = torchvision.ops.batched_nms(
            boxes[image, candidates], scores[image, candidates], group[candidates], iou_threshold
        )[:num]
        index[image, : len(kept)] = candidates[kept]
        valid[image, : len(kept)] = True
    return index, valid
