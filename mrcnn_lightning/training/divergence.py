"""Training that is no longer finite: noticed where it begins, and never written.

B images of a batch, L losses, W processes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mrcnn_lightning.user_error import UserError

_REMEDY = "lower optimizer.lr or set trainer.gradient_clip_val"


class DivergedError(UserError):
    """Training is no longer finite.

    Attributes:
        step: the first that showed it.
        rank: the process whose losses showed it; None where weights did.
        image_ids: of that process's batch.
        seeds: of that batch's images.
    """

    def __init__(
        self,
        message: str,
        *,
        step: int,
        rank: int | None = None,
        image_ids: Sequence[int] = (),
        seeds: Sequence[int] = (),
    ) -> None:
        super().__init__(message)
        self.step = step
        self.rank = rank
        self.image_ids = list(image_ids)
        self.seeds = list(seeds)


class Divergence:
    """Keeps the first losses that are not finite, on their device, which nobody waits for.

    Args:
        losses: of any step.
        images: (2, B) ids and seeds of any step's images.
    """

    def __init__(self, losses: Mapping[str, Tensor], images: Tensor) -> None:
        self.names = list(losses)
        # The step and its losses; an infinite step is none.
        self._first = next(iter(losses.values())).new_full((1 + len(losses),), torch.inf)
        self._images = torch.zeros_like(images)

    def note(self, losses: Mapping[str, Tensor], images: Tensor, step: int) -> None:
        """Look at the losses of a step and keep its images, if it is the first bad one."""
        values = torch.stack([value.detach() for value in losses.values()])  # (L,)
        is_first = ~torch.isfinite(values.sum()) & torch.isinf(self._first[0])
        now = torch.cat([torch.full_like(values[:1], step), values])  # (1 + L,)
        self._first = torch.where(is_first, now, self._first)
        self._images = torch.where(is_first, images, self._images)

    def check(self, all_gather: Callable[[Tensor], Any]) -> None:
        """Wait for the device and look at all ranks' losses so far.

        Args:
            all_gather: stacks what the ranks have.

        Raises:
            DivergedError: they were not finite, at which step first, and what they were then.
        """
        steps = all_gather(self._first).view(-1, 1 + len(self.names)).tolist()  # W of 1 + L
        rank = min(range(len(steps)), key=lambda each: steps[each][0])
        step, *values = steps[rank]
        if step == torch.inf:
            return
        image_ids, seeds = all_gather(self._images).view(-1, *self._images.shape)[rank].tolist()
        losses = ", ".join(
            f"{name} {value:.4g}" for name, value in zip(self.names, values, strict=True)
        )
        raise DivergedError(
            f"the loss is not finite at step {int(step)}: {losses}; {_REMEDY}",
            step=int(step),
            rank=rank,
            image_ids=image_ids,
            seeds=seeds,
        )


def refuse_diverged(checkpoint: Mapping[str, Any], step: int) -> None:
    """Refuse to write a checkpoint of a training that has diverged.

    Args:
        checkpoint: Lightning's.
        step: of the run.

    Raises:
        DivergedError: a weight or what the optimizer keeps is not finite.
    """
    for key in ("state_dict", "current_model_state", "optimizer_states"):  # the second beside EMA
        for name, tensor in _tensors(checkpoint.get(key, {}), key):
            if not torch.isfinite(tensor).all():
                raise DivergedError(
                    f"{name} is not finite after {step} steps, although the losses were, and is "
                    f"not written: {_REMEDY}",
                    step=step - 1,
                )


def _tensors(tree: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping | list | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from _tensors(value, f"{name}.{key}")
