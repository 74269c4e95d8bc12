"""Gradient checkpointing: memory for time (Chen et al. 2016)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(layer: nn.Module, features: Any) -> Any:
    """A layer's output, of which training keeps only what its blocks are given.

    The blocks are the parts of a sequence, or the layer itself. Running statistics move once, and
    what is drawn at random is drawn the same, so that gradients are those without it.

    Args:
        layer: of a backbone.
        features: what it takes.
    """
    blocks = list(layer) if type(layer) is nn.Sequential else [layer]
    for block in blocks:
        is_trained = any(parameter.requires_grad for parameter in block.parameters())
        if is_trained and torch.is_grad_enabled():
            features = checkpoint(
                block, features, use_reentrant=False, context_fn=partial(_contexts, block)
            )
        else:
            features = block(features)
    return features


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the forward pass and of the second one."""
    return nullcontext(), _statistics_stay(block)


@contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """Batch norms use their batch's statistics, and add nothing to the running ones."""
    norms = [
        module
        for module in block.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, count) in zip(norms, before, strict=True):
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
