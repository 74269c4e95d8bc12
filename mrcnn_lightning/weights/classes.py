"""Rows of classes: which of a file's belong to which of a model's.

K classes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.models.heads.box_head import BoxBranch
from mrcnn_lightning.models.heads.mask_head import MaskHead
from mrcnn_lightning.weights.torchvision import COCO_80, COCO_90


def cocos_names(
    state: Mapping[str, Tensor], wanted: Sequence[str], weights: str
) -> list[str] | None:
    """Names of the classes of a file that does not say them, if they are COCO's.

    A file of one's own with 80 classes may have others: it is COCO's where the model's names are.
    What is fetched was published for COCO.
    """
    of_coco = {len(coco): coco for coco in (COCO_80, COCO_90)}
    coco = of_coco.get(num_classes_of(state))
    is_own = Path(weights).exists() and not set(wanted) <= set(coco or [])
    return None if is_own else coco


def num_classes_of(state: Mapping[str, Tensor]) -> int:
    """K of a state under our names."""
    rows = [len(state[key]) for key in state if re.fullmatch(r"box_head\..*classifier\.bias", key)]
    return rows[0] - 1 if rows else 0


def _rows_per_class(detector: Detector) -> dict[str, int]:
    """Rows that each class has in the parameters that have any, by name."""
    sizes = {}
    for name, head in detector.named_modules():
        if isinstance(head, BoxBranch):
            sizes[f"{name}.classifier"] = 1
        if isinstance(head, BoxBranch | MaskHead) and not head.class_agnostic:
            layer, size = ("deltas", 4) if isinstance(head, BoxBranch) else ("classifier", 1)
            sizes[f"{name}.{layer}"] = size
    return {f"{layer}.{kind}": size for layer, size in sizes.items() for kind in ("weight", "bias")}


def fit_classes(
    state: dict[str, Tensor], class_names: Sequence[str] | None, detector: Detector
) -> list[str]:
    """Pick the rows of the detector's classes in `state`, or take out the layers that have rows.

    Returns:
        The parameters that were taken out.
    """
    wanted, num_classes = detector.class_names, num_classes_of(state)
    sizes = {key: size for key, size in _rows_per_class(detector).items() if key in state}
    if list(wanted) == class_names or (class_names is None and len(wanted) == num_classes):
        classes = torch.arange(num_classes)
    elif class_names is not None and set(wanted) <= set(class_names):
        classes = torch.tensor([class_names.index(name) for name in wanted])
    else:
        for key in sizes:
            del state[key]
        return sorted(sizes)
    for key, size in sizes.items():
        rows = state[key].unflatten(0, (-1, size))
        if len(rows) not in (num_classes, num_classes + 1):
            continue  # of another kind, which loading says
        has_background = len(rows) == num_classes + 1
        # A background's box or mask (torchvision's, Matterport's) is never used.
        is_score = size == 1 and key.startswith("box_head.")
        chosen = rows[classes + int(has_background)]
        state[key] = (torch.cat([rows[:1], chosen]) if is_score else chosen).flatten(0, 1)
    return []
