"""Which rows of a layer belong to which class.

K classes.
"""

from typing import Literal

import torch
from torch import Tensor

ClassRows = Literal["classes", "classes_and_background", "agnostic"]


def num_rows(rows: ClassRows, num_classes: int) -> int:
    """How many boxes or masks a layer gives for a RoI.

    One for each class (Detectron2); one for the background too, first, which is never used
    (reference models A and B, torchvision); or one for all classes together.

    Raises:
        ValueError: there are no such rows.
    """
    known = {"classes": num_classes, "classes_and_background": num_classes + 1, "agnostic": 1}
    if rows not in known:
        raise ValueError(f"rows={rows} is not one of {', '.join(known)}")
    return known[rows]


def row_of(rows: ClassRows, labels: Tensor) -> Tensor:
    """The row of each label 1..K; the first for background, which has no box or mask to learn."""
    if rows == "agnostic":
        return torch.zeros_like(labels)
    return labels if rows == "classes_and_background" else (labels - 1).clamp(min=0)
