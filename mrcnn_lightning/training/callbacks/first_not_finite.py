"""Where training stops being finite, found while a step is run again."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mrcnn_lightning.structures import Batch
from mrcnn_lightning.user_error import UserError


class FirstNotFinite(Callback):
    """Names the first module whose output is not finite in the step that diverged.

    The step before, whose losses were finite, runs under torch's anomaly detection too: what its
    backward pass made of the weights may be the cause. The process that finds something ends with a
    `UserError` that says so.

    Args:
        step: the first whose losses were not finite.
    """

    def __init__(self, *, step: int) -> None:
        self.step = step
        self._hooks: list[RemovableHandle] = []
        self._meant: set[str] = set()  # what is not finite in the step before either
        self._found: str | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Watch this batch. The hooks are put in place anew, to come after those of others."""
        if trainer.global_step >= self.step - 1:
            # In 16-mixed, gradients overflow now and then, and the step is left out: no mistake.
            torch.autograd.set_detect_anomaly(True, check_nan=trainer.precision != "16-mixed")
            in_sound_step = trainer.global_step < self.step
            self._hooks = [
                module.register_forward_hook(self._look_at(name, in_sound_step))
                for name, module in pl_module.model.named_modules(prefix="model")
            ]

    def _look_at(self, name: str, in_sound_step: bool) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._found is not None or name in self._meant or _are_finite(output):
                return
            if in_sound_step:
                self._meant.add(name)
            else:
                self._found = f"{name} ({type(module).__name__}), {_cause(module, inputs)}"

        return look

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Say what was found.

        Raises:
            UserError: the loss is not finite.
        """
        while self._hooks:
            self._hooks.pop().remove()
        if trainer.global_step >= self.step and not torch.isfinite(loss):
            where = self._found or "none of them: their outputs are finite, the losses are not"
            step = trainer.global_step
            raise UserError(f"step {step}: the first module whose output is not finite is {where}")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """End after the step.

        Raises:
            UserError: it was finite.
        """
        torch.autograd.set_detect_anomaly(False)
        if trainer.global_step > self.step:
            raise UserError(
                f"step {self.step} is finite this time: the cause is none of its data, weights and "
                "seed (a fault of the machine, another number of processes, other files)"
            )


def _cause(module: nn.Module, inputs: Any) -> str:
    """What made a module's output what it is."""
    wrong = [name for name, weight in module.named_parameters() if not _are_finite(weight)]
    if wrong:
        return f"whose weights are not finite: {', '.join(wrong)}"
    if not _are_finite(inputs):
        return "whose input is not finite either, though all modules before gave finite outputs"
    return "whose input and weights are finite"


def _are_finite(tree: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(tree))


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Those of numbers with a point, in lists, dictionaries and dataclasses."""
    if isinstance(tree, Tensor):
        if tree.is_floating_point():
            yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for each in tree:
            yield from _tensors(each)
    elif is_dataclass(tree):
        yield from _tensors([getattr(tree, field.name) for field in fields(tree)])
