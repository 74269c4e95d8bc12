"""Gradient checkpointing: memory for time (Chen et al. 2016)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recomputed(function: Callable[[T], T], layers: Sequence[nn.Module], features: T) -> T:
    """What a function makes of features, of which training keeps only the features.

    Running statistics move once, and what is drawn at random is drawn the same, so that gradients
    are those without it.

    Args:
        function: the layers, one after the other.
        layers: if none of them is trained, there is nothing to keep.
        features: what it takes.
    """
    is_trained = any(each.requires_grad for layer in layers for each in layer.parameters())
    if not (is_trained and torch.is_grad_enabled()):
        return function(features)
    contexts = partial(_contexts, layers)
    output: T = checkpoint(function, features, use_reentrant=False, context_fn=contexts)
    return output


def _contexts(
    layers: Sequence[nn.Module],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the forward pass and of the second one."""
    return nullcontext(), _statistics_stay(layers)


@contextmanager
def _statistics_stay(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Batch norms use their batch's statistics, and add nothing to the running ones."""
    norms = [
        module
        for layer in layers
        for module in layer.modules()
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
