"""Which row of a layer belongs to which class: each has its own, or all share one.

K classes.
"""

import torch
from torch import Tensor


def num_rows(num_classes: int, *, class_agnostic: bool) -> int:
    """How many boxes or masks a layer gives for a RoI."""
    return 1 if class_agnostic else num_classes


def row_of(labels: Tensor, *, class_agnostic: bool) -> Tensor:
    """The row of each label 1..K; the first for background, which has no box or mask to learn."""
    return torch.zeros_like(labels) if class_agnostic else (labels - 1).clamp(min=0)
