"""Non-maximum suppression for a batch.

B images, N candidates, S kept.
"""

import warnings
from functools import cache

import torch
import torchvision
from torch import Tensor


@torch.library.custom_op("mrcnn_lightning::batched_nms", mutates_args=())
def batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, iou_threshold: float, num: int
) -> tuple[Tensor, Tensor]:
    """The best `num` boxes an image that no better box of their own group overlaps too much.

    On a GPU a kernel does the whole batch, and the host does not wait; else torchvision's operator
    does image after image. To `torch.compile` and `torch.export` it is one operator, since its
    sizes do not depend on what is kept.

    Args:
        boxes: (B, N, 4).
        scores: (B, N); -inf marks what is no candidate.
        groups: (B, N) or (N,) int64 >= 0; boxes of different groups never suppress each other.
        iou_threshold: above it the lower score goes.
        num: S.

    Returns:
        index (B, S) int64, best first, and valid (B, S) bool.
    """
    groups = groups.expand(len(boxes), -1)
    if boxes.is_cuda and _kernel_works(boxes.device):
        return nms_at_once(boxes, scores, groups, iou_threshold=iou_threshold, num=num)
    return nms_by_image(boxes, scores, groups, iou_threshold=iou_threshold, num=num)


@batched_nms.register_fake
def _sizes_of_batched_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, iou_threshold: float, num: int
) -> tuple[Tensor, Tensor]:
    index = boxes.new_empty(boxes.shape[0], num, dtype=torch.int64)
    return index, torch.empty_like(index, dtype=torch.bool)


@cache
def _kernel_works(device: torch.device) -> bool:
    """Whether Triton is there and can do its work on a device: it wants a C compiler."""
    boxes = torch.zeros(1, 1, 4, device=device)
    scores, groups = boxes[..., 0], torch.zeros(1, 1, dtype=torch.int64, device=device)
    try:
        nms_at_once(boxes, scores, groups, iou_threshold=0.5, num=1)
    except Exception as error:  # what Triton raises has no common ancestor
        warnings.warn(f"NMS goes image by image, since Triton does not work: {error}", stacklevel=2)
        return False
    return True


def nms_by_image(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, iou_threshold: float, num: int
) -> tuple[Tensor, Tensor]:
    """As `batched_nms`, on any device."""
    index = torch.zeros(len(boxes), num, dtype=torch.int64, device=boxes.device)
    valid = torch.zeros(len(boxes), num, dtype=torch.bool, device=boxes.device)
    for image, group in enumerate(groups):
        candidates = torch.nonzero(scores[image] > -torch.inf).squeeze(1)
        kept = torchvision.ops.batched_nms(
            boxes[image, candidates], scores[image, candidates], group[candidates], iou_threshold
        )[:num]
        index[image, : len(kept)] = candidates[kept]
        valid[image, : len(kept)] = True
    return index, valid


def nms_at_once(
    boxes: Tensor, scores: Tensor, groups: Tensor, *, iou_threshold: float, num: int
) -> tuple[Tensor, Tensor]:
    """As `batched_nms`, by a kernel of Triton."""
    from mrcnn_lightning.ops.nms_kernel import keep_best

    scores, order = scores.sort(dim=1, descending=True, stable=True)
    kept, num_kept = keep_best(
        boxes.gather(1, order[..., None].expand(-1, -1, 4)),
        groups.gather(1, order),
        (scores > -torch.inf).sum(dim=1),
        iou_threshold=iou_threshold,
        num=num,
    )
    valid = torch.arange(num, device=boxes.device) < num_kept[:, None]
    return torch.where(valid, order.gather(1, kept), 0), valid
