"""Whether the devices that a run asks for are there."""

from collections.abc import Sequence

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment


def check_devices(
    accelerator: str, devices: int | str | Sequence[int] | None, *, in_sweep: bool
) -> None:
    """Refuse what Lightning would make something else of.

    Args:
        accelerator: as for Lightning's trainer.
        devices: likewise.
        in_sweep: whether this is one job of a sweep in this process.

    Raises:
        ValueError: in one sentence, what is missing and what to do.
    """
    num = devices if devices is None or isinstance(devices, (int, str)) else len(devices)
    if isinstance(num, str) and num.isdigit():
        num = int(num)
    if not isinstance(num, int) or num < 1:  # "auto" and -1 take what is there
        return
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if accelerator == "auto" and num > 1 and not has_gpu:
        raise ValueError(
            f"trainer.devices={num}, but this machine has no GPU; for {num} processes on its CPU, "
            "say trainer.accelerator=cpu"
        )
    num_gpus = torch.cuda.device_count()
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() and num > num_gpus:
        raise ValueError(f"trainer.devices={num}, but this machine has {num_gpus} GPUs")
    if accelerator in ("gpu", "cuda") and not has_gpu:
        raise ValueError(f"trainer.accelerator={accelerator}, but this machine has no GPU")
    if in_sweep and num > 1 and not SLURMEnvironment.detect():
        raise ValueError(
            f"trainer.devices={num} under --multirun: a job of a sweep cannot start further "
            "processes; sweep on one device a job, or give the sweep launcher=slurm, whose jobs "
            "start with all their processes"
        )
