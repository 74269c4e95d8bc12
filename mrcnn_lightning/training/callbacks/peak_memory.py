"""The most memory that training has used."""

import sys
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from mrcnn_lightning.structures import Batch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_GIB = 2**30
# Bytes of what the system counts in.
_UNIT = 1 if sys.platform == "darwin" else 1024


class PeakMemory(Callback):
    """Logs `train/peak_memory_host` and, on a GPU, `train/peak_memory_device`, in GiB.

    The most since the process started, on this rank: of the process without its data workers, and
    of what torch gave to tensors on the device.
    """

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Log."""
        values = {}
        if resource is not None:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            values["train/peak_memory_host"] = torch.tensor(most * _UNIT / _GIB)
        if pl_module.device.type == "cuda":
            most = torch.cuda.max_memory_allocated(pl_module.device)
            values["train/peak_memory_device"] = torch.tensor(most / _GIB)
        pl_module.log_dict(values, batch_size=len(batch))
