"""Fixed-size random samples of positive and negative boxes, with randomness that is keyed.

B images, N candidates, S sampled.
"""

import hashlib
import struct
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from mrcnn_lightning.ops.matching import NEGATIVE, POSITIVE

_MASK = 0xFFFFFFFF


class Stage(IntEnum):
    """What is sampled: each stage draws other numbers for the same image."""

    ANCHORS = 1
    ROIS = 2


class SampledIndices(NamedTuple):
    """Sampled candidates: positives first, then negatives, then unused places."""

    indices: Tensor  # (B, S) int64
    positive: Tensor  # (B, S) bool
    valid: Tensor  # (B, S) bool, false where there were not enough candidates


def image_seed(seed: int, epoch: int, image_id: int) -> int:
    """A 32-bit seed for all that is random about one image in one epoch."""
    return _digest(seed, epoch, image_id)


def step_key(seed: int, step: int, part: int, rank: int) -> int:
    """A 32-bit seed for what layers draw (stochastic depth) in one of a step's batches."""
    return _digest(seed, step, part, rank)


def _digest(*numbers: int) -> int:
    content = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(content, digest_size=4).digest(), "little")


def _mix(bits: Tensor) -> Tensor:
    """A bijection of 32 bits that leaves no pattern (int64 in and out; no product overflows)."""
    for _ in range(2):
        bits = (bits ^ (bits >> 16)) * 0x45D9F3B & _MASK
    return bits ^ (bits >> 16)


def random_keys(seeds: Tensor, stage: Stage, slots: Tensor) -> Tensor:
    """Random int64 numbers (B, N) >= 0 that depend on image, stage and slot alone.

    Args:
        seeds: (B,) the images', from `image_seed`.
        stage: what is drawn.
        slots: (N,) or (B, N) int64 in 0..2^31, the candidates' names; other ones, other numbers.
    """
    of_stage = _mix(seeds ^ _mix(torch.full_like(seeds, int(stage))))
    bits = _mix(of_stage[:, None] ^ _mix(slots))  # (B, N)
    return (bits << 31) | slots


def sample(
    label: Tensor,
    random: Tensor,
    *,
    num: int,
    positive_fraction: float,
    keep_proportion: bool = False,
) -> SampledIndices:
    """Sample `num` candidates an image, at most `positive_fraction` of them positive.

    Negatives take the places that positives leave (Faster R-CNN, section 3.1.3).

    Args:
        label: (B, N) of POSITIVE, NEGATIVE and others, which are never sampled.
        random: (B, N) distinct int64 numbers >= 0; the highest win.
        num: S, or N where that is less.
        positive_fraction: in [0, 1].
        keep_proportion: whether there are only as many negatives as make the positives their
            fraction, which is none at all without positives.
    """
    num = min(num, label.shape[1])
    num_positive = int(num * positive_fraction)

    def draw(kind: int, most: int) -> tuple[Tensor, Tensor]:
        drawn = torch.where(label == kind, random, -1).topk(most, dim=1)
        return drawn.indices, drawn.values >= 0

    positives, are_positives = draw(POSITIVE, num_positive)
    negatives, are_negatives = draw(NEGATIVE, num)
    found = are_positives.sum(dim=1, keepdim=True)
    places_left = num - found
    if keep_proportion:
        # Apple's GPUs have no float64; there, one negative may be more or less.
        exact = torch.float32 if label.device.type == "mps" else torch.float64
        wanted = (found.to(exact) / positive_fraction - found).to(torch.int64)
        places_left = torch.minimum(places_left, wanted)
    are_negatives &= torch.arange(num, device=label.device) < places_left

    indices = torch.cat([positives, negatives], dim=1)  # (B, num_positive + num)
    valid = torch.cat([are_positives, are_negatives], dim=1)
    front = torch.argsort(valid, dim=1, descending=True, stable=True)[:, :num]
    valid = valid.gather(1, front)
    return SampledIndices(indices.gather(1, front), (front < num_positive) & valid, valid)
