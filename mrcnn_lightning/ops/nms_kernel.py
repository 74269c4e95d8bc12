"""Non-maximum suppression of a whole batch in one kernel of a GPU, without the host waiting.

B images, N candidates, S kept, T candidates of a tile, C kept ones that are compared at a time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE, CHUNK = 64, 128


@triton.jit
def _overlaps(boxes, groups, rows, are_rows, columns, are_columns, threshold):  # type: ignore[no-untyped-def]
    """Whether candidates `rows` (T,) and `columns` (C,) of an image overlap too much: (T, C)."""
    x1 = tl.load(boxes + rows * 4, mask=are_rows, other=0.0)[:, None]
    y1 = tl.load(boxes + rows * 4 + 1, mask=are_rows, other=0.0)[:, None]
    x2 = tl.load(boxes + rows * 4 + 2, mask=are_rows, other=0.0)[:, None]
    y2 = tl.load(boxes + rows * 4 + 3, mask=are_rows, other=0.0)[:, None]
    group = tl.load(groups + rows, mask=are_rows, other=-1)[:, None]
    other_x1 = tl.load(boxes + columns * 4, mask=are_columns, other=0.0)[None, :]
    other_y1 = tl.load(boxes + columns * 4 + 1, mask=are_columns, other=0.0)[None, :]
    other_x2 = tl.load(boxes + columns * 4 + 2, mask=are_columns, other=0.0)[None, :]
    other_y2 = tl.load(boxes + columns * 4 + 3, mask=are_columns, other=0.0)[None, :]
    other_group = tl.load(groups + columns, mask=are_columns, other=-2)[None, :]
    width = tl.maximum(tl.minimum(x2, other_x2) - tl.maximum(x1, other_x1), 0.0)
    height = tl.maximum(tl.minimum(y2, other_y2) - tl.maximum(y1, other_y1), 0.0)
    overlap = width * height
    area = (x2 - x1) * (y2 - y1)
    other_area = (other_x2 - other_x1) * (other_y2 - other_y1)
    # Triton's own division is not exact, and a pair may lie exactly at the threshold.
    iou = tl.div_rn(overlap, area + other_area - overlap)
    return (iou > threshold) & (group == other_group)


@triton.jit
def _keep(  # type: ignore[no-untyped-def]
    boxes,
    groups,
    num_candidates,
    kept,
    num_kept,
    size,
    most,
    threshold,
    tile: tl.constexpr,
    chunk: tl.constexpr,
):
    """One image's part: candidates in tiles, best first, against those kept and each other."""
    image = tl.program_id(0).to(tl.int64)
    boxes += image * size * 4
    groups += image * size
    kept += image * most
    candidates = tl.load(num_candidates + image)
    found = 0
    start = 0
    while (start < candidates) & (found < most):
        rows = start + tl.arange(0, tile)
        are_rows = rows < candidates
        alive = are_rows.to(tl.int32)
        for first in range(0, found, chunk):
            places = first + tl.arange(0, chunk)
            are_kept = places < found
            columns = tl.load(kept + places, mask=are_kept, other=0)
            hits = _overlaps(boxes, groups, rows, are_rows, columns, are_kept, threshold)
            alive *= 1 - tl.max((hits & are_kept[None, :]).to(tl.int32), axis=1)
        # Within the tile, better ones above: (T, T) of who would suppress whom.
        hits = _overlaps(boxes, groups, rows, are_rows, rows, are_rows, threshold)
        hits = (hits & (rows[:, None] < rows[None, :])).to(tl.int32)
        # Who is kept depends on who of the better ones is: right after at most T rounds.
        keep = alive
        changed = 1
        while changed > 0:
            suppressed = tl.max(hits * keep[:, None], axis=0)
            kept_now = alive * (1 - suppressed)
            changed = tl.sum((kept_now != keep).to(tl.int32), axis=0)
            keep = kept_now
        places = found + tl.cumsum(keep, axis=0) - 1
        tl.store(kept + places, rows, mask=(keep > 0) & (places < most))
        found = tl.minimum(found + tl.sum(keep, axis=0), most)
        tl.debug_barrier()  # the next tile reads what this one wrote
        start += tile
    tl.store(num_kept + image, found)


def keep_best(
    boxes: Tensor, groups: Tensor, num_candidates: Tensor, *, iou_threshold: float, num: int
) -> tuple[Tensor, Tensor]:
    """Which candidates, sorted by score, no better one of their group overlaps too much.

    Args:
        boxes: (B, N, 4), best first.
        groups: (B, N) int64 >= 0.
        num_candidates: (B,) int64, how many of the N there are.
        iou_threshold: above it the lower score goes.
        num: S.

    Returns:
        Places (B, S) int64 among the N, zeros behind the last, and how many (B,) int64.
    """
    kept = torch.zeros(len(boxes), num, dtype=torch.int64, device=boxes.device)
    num_kept = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    with torch.cuda.device_of(boxes):
        _keep[(len(boxes),)](
            boxes.contiguous(),
            groups.contiguous(),
            num_candidates,
            kept,
            num_kept,
            boxes.shape[1],
            num,
            iou_threshold,
            tile=TILE,
            chunk=CHUNK,
            num_warps=8,
        )
    return kept, num_kept
