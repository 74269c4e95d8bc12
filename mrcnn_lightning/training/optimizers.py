"""What an optimizer is made with: groups of parameters, and whether it is fused."""

from typing import Any

import lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay_biases: bool,
    backbone_lr_factor: float,
) -> list[dict[str, Any]]:
    """Named groups for an optimizer: norms do not decay, the backbone has its own rate.

    Args:
        model: a detector.
        lr: of all but the backbone.
        weight_decay: of matrices and convolutions.
        decay_biases: whether their biases decay too.
        backbone_lr_factor: the backbone's part of `lr`.
    """
    groups: dict[str, dict[str, Any]] = {}
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_bias = f"{name.removesuffix('bias')}weight" in matrices
        in_backbone, decays = name.startswith("backbone."), name in matrices
        decays = decays or (decay_biases and is_bias)
        group = f"{'backbone' if in_backbone else 'heads'}{'' if decays else '_no_decay'}"
        groups.setdefault(
            group,
            {
                "name": group,
                "params": [],
                "lr": lr * (backbone_lr_factor if in_backbone else 1.0),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )["params"].append(parameter)
    return list(groups.values())


def fused_option(make_optimizer: Any, trainer: lightning.Trainer) -> dict[str, bool]:
    """Whether an optimizer is fused, if it has that option.

    Lightning clips no gradients for a fused one in mixed precision: it is then not.

    Args:
        make_optimizer: a partial, see `DetectionTask`.
        trainer: of the run.
    """
    fused = make_optimizer.keywords.get("fused")
    if fused and trainer.gradient_clip_val and "mixed" in str(trainer.precision):
        rank_zero_warn(
            "optimizer.fused=true does not go with trainer.gradient_clip_val in mixed precision: "
            "the optimizer is not fused, which is slower and otherwise the same"
        )
        fused = False
    return {} if fused is None else {"fused": fused}
