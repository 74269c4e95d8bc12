"""What an optimizer is made with: groups of parameters, and whether it is fused."""

from typing import Any

from torch import nn
from torch.optim import Optimizer


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


def fused_option(make_optimizer: Any) -> dict[str, bool]:
    """Whether an optimizer is fused, if it has that option.

    Args:
        make_optimizer: a partial, see `DetectionTask`.
    """
    fused = make_optimizer.keywords.get("fused")
    return {} if fused is None else {"fused": fused}


def let_gradients_be_clipped(optimizer: Optimizer) -> None:
    """Have a fused optimizer's gradients divided by fp16's scale before it steps, not by itself.

    Lightning cannot clip them in mixed precision otherwise, and refuses to, also in bf16, which has
    no scale.
    """
    if hasattr(optimizer, "_step_supports_amp_scaling"):  # torch's word to its GradScaler
        optimizer._step_supports_amp_scaling = False
