"""Whether the trainer that a run asks for can train, and its devices are there."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.plugins.environments import (
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from mrcnn_lightning.user_error import UserError

_BY_HAND = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
_LAUNCHERS = (
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

# Lightning divides by the first three, and takes the last for no clipping.
_LEAST = {
    "log_every_n_steps": 1,
    "check_val_every_n_epoch": 1,
    "accumulate_grad_batches": 1,
    "num_nodes": 1,
    "gradient_clip_val": 0,
}


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse what Lightning takes, but no training comes of.

    Args:
        settings: of Lightning's trainer.

    Raises:
        UserError: in one sentence, which setting, and what to say instead.
    """
    for key, least in _LEAST.items():
        value = settings.get(key)
        if value is not None and value < least:
            raise UserError(f"trainer.{key}={value} is less than {least}")
    for key in ("max_steps", "max_epochs"):
        value = settings.get(key)
        if value is not None and value != -1 and value < 1:
            raise UserError(f"trainer.{key}={value} trains nothing; -1 is no limit")
    precision = str(settings.get("precision"))
    if precision in ("16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision={precision} would round boxes to whole pixels and more: say "
            f"trainer.precision={precision.removesuffix('true')}mixed"
        )
    if settings.get("sync_batchnorm") and not torch.cuda.is_available():
        raise UserError(
            "trainer.sync_batchnorm=true needs GPUs, and this machine has none: leave it out"
        )
    strategy = settings.get("strategy", "auto")
    name = strategy if isinstance(strategy, str) else strategy.get("_target_", "")
    if not re.search(r"^auto$|^ddp(_find_unused_parameters_(true|false))?$|\.DDPStrategy$", name):
        raise UserError(
            f"trainer.strategy={name} does not go with this model, which need not be split "
            "over devices: say trainer.strategy=auto, which is DDP on several; where memory is "
            "short, task.recompute_backbone=true or trainer.precision=bf16-mixed"
        )


def check_devices(
    accelerator: str, devices: int | str | Sequence[int] | None, *, in_sweep: bool
) -> None:
    """Refuse what Lightning would make something else of.

    Args:
        accelerator: as for Lightning's trainer.
        devices: likewise.
        in_sweep: whether this is a job of a sweep in a process of its launcher.

    Raises:
        UserError: in one sentence, what is missing and what to do.
    """
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if accelerator in ("gpu", "cuda") and not has_gpu:
        raise UserError(
            f"trainer.accelerator={accelerator}, but this machine has no GPU: say "
            "trainer.accelerator=cpu"
        )
    num = devices if devices is None or isinstance(devices, (int, str)) else len(devices)
    if isinstance(num, str) and num.isdigit():
        num = int(num)
    if num == 0:
        raise UserError(f"trainer.devices={devices} is no device: say 1 or more, or auto for all")
    if not isinstance(num, int) or num < 1:  # "auto" and -1 take what is there
        return
    if accelerator == "auto" and num > 1 and not has_gpu:
        raise UserError(
            f"trainer.devices={num}, but this machine has no GPU; for {num} processes on its CPU, "
            "say trainer.accelerator=cpu"
        )
    num_gpus = torch.cuda.device_count()
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() and num > num_gpus:
        raise UserError(f"trainer.devices={num}, but this machine has {num_gpus} GPUs")
    if in_sweep and num > 1 and not SLURMEnvironment.detect():
        raise UserError(
            f"trainer.devices={num}, but this sweep's launcher runs each job on one device: say "
            "launcher=local, whose jobs are processes of their own, or launcher=slurm"
        )


def check_nodes(num_nodes: int) -> None:
    """Refuse several nodes where nothing says how they find each other: they would wait forever.

    Args:
        num_nodes: as for Lightning's trainer.

    Raises:
        UserError: in one sentence, how to start them.
    """
    if num_nodes == 1 or any(launcher.detect() for launcher in _LAUNCHERS):
        return
    missing = [name for name in _BY_HAND if name not in os.environ]
    if missing:
        raise UserError(
            f"trainer.num_nodes={num_nodes}, but {', '.join(missing)} are not set: start the same "
            "command on every node with SLURM or torchrun, or with the address and port of the "
            "first one and NODE_RANK=0, 1, ..."
        )
