"""Operators of a training step, and where the host would wait for a GPU: found on a CPU.

    python benchmarks/operators.py --steps 30

A whole fit of a small model, with the callbacks and the table of every run, is watched. What would
be on a GPU is told from what is on the host by where it came from: weights, batches, and what was
computed from them or made for their device.
"""

import statistics
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from unittest import mock

import lightning
import torch
import typer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from turns import ROOT

from mrcnn_lightning.app import run
from mrcnn_lightning.data.datamodule import COCODataModule
from mrcnn_lightning.data.shapes import generate_shapes
from mrcnn_lightning.models.rpn import proposals
from mrcnn_lightning.ops import matching
from mrcnn_lightning.structures import Batch

# Operators whose result's size or value the host needs.
_WAITING = ("nonzero", "_local_scalar_dense", "masked_select", "_unique2", "nms")
_INDEXING = ("index", "index_put", "index_put_", "_unsafe_index")
# Methods that read a tensor on the host without an operator, and functions that copy to a device.
_READING = ("tolist", "cpu", "numpy")
_WRITING = ("tensor", "as_tensor")


@dataclass
class Step:
    """What a training step did."""

    is_logged: bool
    operators: int = 0
    waits: list[str] = field(default_factory=list)  # kind and place of each


class Watch(TorchDispatchMode):
    """Notes operators, and those that the host would wait for if the model were on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = [Step(is_logged=False)]
        self._on_device: dict[int, StorageWeakRef] = {}
        self._is_paused = False

    def put_on_device(self, *tensors: Any) -> None:
        """Take these, and what is computed from them, for the device's."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                # As long as this refers to it, no other storage has its address.
                reference = StorageWeakRef(tensor.untyped_storage())
                self._on_device[reference.cdata] = reference

    def put_on_host(self, tensor: Tensor) -> None:
        """Take this for a copy that the host has."""
        self._on_device.pop(tensor.untyped_storage()._cdata, None)

    def forget(self) -> None:
        """Take nothing for the device's any more."""
        self._on_device = {}

    def is_on_device(self, tensor: Any) -> bool:
        """Whether it, or what it was computed from, was put there."""
        return isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata in self._on_device

    def wait(self, kind: str) -> None:
        """Note that the host waits here."""
        if not self._is_paused:
            self.steps[-1].waits.append(f"{kind} {_place()}")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile a GPU does otherwise."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        options = options or {}
        self.steps[-1].operators += 1
        given = tree_leaves((arguments, options))
        on_device = any(map(self.is_on_device, given))
        name = str(function).removeprefix("aten.").split(".")[0]
        by_mask = name in _INDEXING and any(
            isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)
            for each in tree_leaves(arguments[1])
        )
        if on_device and (name in _WAITING or by_mask):
            self.wait(name)
        result = function(*arguments, **options)
        if on_device:
            self.put_on_device(result)
        return result


def _place() -> str:
    """The innermost line of this project, or else of Lightning."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if "/lightning/" in frame.filename or f"{ROOT}/mrcnn_lightning/" in frame.filename
    ]
    ours = [frame for frame in frames if f"{ROOT}/mrcnn_lightning/" in frame.filename]
    if not frames:
        return "elsewhere"
    own = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}" if ours else ""
    if frames[-1] in ours:
        return own
    last = frames[-1]
    theirs = last.filename[last.filename.index("/lightning/") + 1 :]
    return f"{theirs}:{last.lineno}" + (f" for {own}" if own else "")


class WatchCalls(TorchFunctionMode):
    """Notes what reads and writes tensors without an operator that says so.

    Args:
        watch: that is told.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        options = options or {}
        name = getattr(function, "__name__", "")
        if name in _READING and self.watch.is_on_device(arguments[0]):
            self.watch.wait(name)
            with self.watch.paused():
                result = function(*arguments, **options)
                if name == "cpu":
                    result = result.clone()
                    self.watch.put_on_host(result)
                return result
        result = function(*arguments, **options)
        if options.get("device") is not None and isinstance(result, Tensor):
            self.watch.put_on_device(result)
            if name in _WRITING and not isinstance(arguments[0], Tensor):
                self.watch.wait(name)
        return result


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Note what is done meanwhile, in a GPU's own ways."""

    def by_kernel(*args: Any, **kwargs: Any) -> Any:
        with watch.paused():
            return batched_nms(*args, **kwargs)

    batched_nms = proposals.batched_nms
    with (
        mock.patch.object(proposals, "batched_nms", by_kernel),
        mock.patch.object(matching, "_compare_touching", matching._compare_all),
        watch,
        WatchCalls(watch),
    ):
        yield


class Steps(Callback):
    """Tells steps apart: one lasts until the next begins."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Say which weights there are; what was made for a device before was for no step."""
        self.watch.forget()
        self.watch.put_on_device(*pl_module.parameters(), *pl_module.buffers())

    def on_train_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Begin a step."""
        self.watch.steps.append(Step(trainer._logger_connector.should_update_logs))

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Begin what is no step."""
        self.watch.steps.append(Step(is_logged=False))


def steps_of_fit(*overrides: str) -> list[Step]:
    """The steps of a run of `python train.py`, but for its first: what is made once is no step's.

    Args:
        overrides: of the configuration, whose model must be small.
    """
    watch, transfer = Watch(), COCODataModule.transfer_batch_to_device

    def transferred(*args: Any) -> Batch:
        batch = transfer(*args)
        watch.put_on_device(*(getattr(batch, each.name) for each in fields(batch)))
        return batch

    def make_trainer(cfg: Any, callbacks: list[Callback], loggers: Any) -> lightning.Trainer:
        return made(cfg, [*callbacks, Steps(watch)], loggers)

    made = run._trainer
    with (
        mock.patch.object(sys, "argv", ["train.py", *overrides, "trainer.limit_val_batches=0"]),
        mock.patch.object(run, "_trainer", make_trainer),
        mock.patch.object(COCODataModule, "transfer_batch_to_device", transferred),
        watched(watch),
    ):
        run.main()
    return watch.steps[2:-1]  # neither what came before them, nor the end of the epoch


def main(
    steps: Annotated[int, typer.Option(help="Of training.")] = 30,
    every: Annotated[int, typer.Option(help="trainer.log_every_n_steps.")] = 10,
    override: Annotated[list[str] | None, typer.Option(help="Of the configuration.")] = None,
) -> None:
    """Print operators a step, and the waits of ordinary steps and of those that are logged."""
    with TemporaryDirectory() as folder:
        generate_shapes(
            root=f"{folder}/shapes",
            num_train=4 * steps,
            num_val=10,
            image_size=64,
            max_objects=4,
            seed=0,
        )
        found = steps_of_fit(
            "experiment=shapes",
            f"data_root={folder}/shapes",
            f"data.cache_dir={folder}/cache",
            "data.prepare=null",
            "data.resize.min_size=64",
            "data.resize.max_size=64",
            "trainer.max_epochs=1",
            f"trainer.log_every_n_steps={every}",
            f"run_dir={folder}/run",
            *(override or []),
        )
    table = Table(title=f"of {len(found)} steps", title_justify="left")
    for column in ("", "an ordinary step", "a step that is logged"):
        table.add_column(column)
    kinds = [[step for step in found if step.is_logged == logged] for logged in (False, True)]
    table.add_row(
        "operators", *(str(statistics.median(s.operators for s in kind)) for kind in kinds)
    )
    counts = [Counter(wait for step in kind for wait in step.waits) for kind in kinds]
    for wait in sorted(counts[0] | counts[1]):
        table.add_row(
            wait,
            *(f"{count[wait] / len(kind):g}" for count, kind in zip(counts, kinds, strict=True)),
        )
    table.add_row(
        "waits",
        *(f"{count.total() / len(kind):g}" for count, kind in zip(counts, kinds, strict=True)),
    )
    Console(width=150).print(table)


if __name__ == "__main__":
    typer.run(main)
