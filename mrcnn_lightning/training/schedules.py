"""Learning-rate schedules as fractions of the run, so that steps and epochs both work."""

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mrcnn_lightning.user_error import UserError


def _warmup(progress: float, warmup: float, warmup_factor: float) -> float:
    """The factor of a linear warm-up, 1 after it."""
    return 1.0 if progress >= warmup else warmup_factor + (1 - warmup_factor) * progress / warmup


def multistep(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup: float,
    warmup_factor: float,
    milestones: Sequence[float],
    gamma: float,
) -> LambdaLR:
    """Linear warm-up, then drops (Mask R-CNN, section 3.1; Detectron's 1x is 60k and 80k of 90k).

    Parts of the run are rounded to whole steps.

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: of the run.
        warmup: the part of the run that the warm-up takes.
        warmup_factor: where it starts, as a part of the learning rate.
        milestones: after which parts of the run the rate drops.
        gamma: what a drop multiplies it with.
    """
    warmup_steps = round(warmup * total_steps)
    drops = [round(milestone * total_steps) for milestone in milestones]

    def factor(step: int) -> float:
        dropped = gamma ** sum(step >= drop for drop in drops)
        return _warmup(step, warmup_steps, warmup_factor) * dropped

    return LambdaLR(optimizer, factor)


def cosine(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup: float,
    warmup_factor: float,
    final_factor: float,
) -> LambdaLR:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2017, without restarts).

    Args:
        optimizer: whose learning rates are scheduled.
        total_steps: of the run.
        warmup: the part of the run that the warm-up takes.
        warmup_factor: where it starts, as a part of the learning rate.
        final_factor: where the cosine ends, likewise.

    Raises:
        UserError: the warm-up leaves nothing of the run.
    """
    if warmup >= 1:
        raise UserError(
            f"scheduler.warmup={warmup} is a part of the run, and leaves none for the cosine: say "
            "less than 1"
        )

    def factor(step: int) -> float:
        progress = step / total_steps
        if progress < warmup:
            return _warmup(progress, warmup, warmup_factor)
        fall = (1 + math.cos(math.pi * min((progress - warmup) / (1 - warmup), 1))) / 2
        return final_factor + (1 - final_factor) * fall

    return LambdaLR(optimizer, factor)
