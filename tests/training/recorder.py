"""A callback for tests that need another process: notes what it trained on, and dies on command."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mrcnn_lightning.structures import Batch
from mrcnn_lightning.user_error import UserError


class Recorder(Callback):
    """Appends each batch's image ids and sum of pixels to a file.

    Args:
        file: what to write; one for each rank.
        kill_after: steps, after which the process kills itself; 0 is never.
        drop: whether stages of the backbone are left out at random, as stochastic depth does.
    """

    def __init__(self, *, file: str, kill_after: int = 0, drop: bool = False) -> None:
        self.file = file
        self.kill_after = kill_after
        self.drop = drop

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Put stochastic depth behind the backbone."""
        if self.drop:
            depth = torchvision.ops.StochasticDepth(0.5, "row")
            pl_module.model.backbone.register_forward_hook(
                lambda backbone, _, maps: [depth.train(backbone.training)(maps[0]), *maps[1:]]
            )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note the batch."""
        row = [batch.image_ids.tolist(), int(batch.images.long().sum()), batch.seeds.tolist()]
        with Path(f"{self.file}{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if trainer.global_step == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


class WeightsOfEachRank(Callback):
    """Saves the weights that each rank starts with, and those it ends with.

    Args:
        file: what to write; the rank is appended, and `_at_start` for the first.
    """

    def __init__(self, *, file: str) -> None:
        self.file = file

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save the first."""
        torch.save(pl_module.state_dict(), f"{self.file}{trainer.global_rank}_at_start")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save the last."""
        torch.save(pl_module.state_dict(), f"{self.file}{trainer.global_rank}")


class GradientsOfEachRank(Callback):
    """Saves the first step's weights, images and gradients on each rank.

    Args:
        file: what to write; the rank is appended.
    """

    def __init__(self, *, file: str) -> None:
        self.file = file
        self.image_ids: Tensor | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Note the images."""
        self.image_ids = batch.image_ids

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any
    ) -> None:
        """Save what the optimizer is given."""
        model = pl_module.model
        content = {
            "weights": model.state_dict(),
            "image_ids": self.image_ids,
            "gradients": {name: p.grad for name, p in model.named_parameters()},
        }
        torch.save(content, f"{self.file}{trainer.global_rank}")


class CompilesQuickly(Callback):
    """Lets PyTorch run a graph's operators one by one, instead of minutes of Inductor."""

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Replace the compiler."""
        for module in pl_module.modules():
            module._compiled_call_impl = None
        step = pl_module._compiled_step
        step._loss = torch.compile(
            step.model.loss, backend="aot_eager_decomp_partition", fullgraph=True, dynamic=False
        )


class FailsAlone(Callback):
    """Raises on one rank after the first step; others wait, as in NCCL, where nothing ends them.

    Args:
        rank: which.
    """

    def __init__(self, *, rank: int) -> None:
        self.rank = rank

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Raise, or wait."""
        if trainer.global_rank == self.rank:
            raise UserError("one rank has had enough")
        time.sleep(200)


class BreaksActivation(Callback):
    """Makes one number of a module's output infinite, at one step on one rank.

    Args:
        module: its name in the task.
        step: how many steps were trained before.
        rank: which.
    """

    def __init__(self, *, module: str, step: int, rank: int) -> None:
        self.module = module
        self.step = step
        self.rank = rank

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Break it."""
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):

            def broken(module: Any, inputs: Any, output: Tensor) -> Tensor:
                return output + torch.zeros_like(output).index_fill(
                    0, torch.tensor([0], device=output.device), torch.inf
                )

            pl_module.get_submodule(self.module).register_forward_hook(broken)


class EndsProcess(Callback):
    """Ends another process, such as a server.

    Args:
        pid: of the process, the first of its group.
        step: after how many steps.
    """

    def __init__(self, *, pid: int, step: int) -> None:
        self.pid = pid
        self.step = step

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """End it."""
        if trainer.global_step == self.step:
            os.killpg(self.pid, signal.SIGKILL)
