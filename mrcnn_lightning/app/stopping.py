"""A run that is told to end, by Ctrl-C, SIGTERM or SIGUSR1, saves first and says how to go on."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback
from torch.distributed import ProcessGroup, ReduceOp, all_reduce, new_group

from mrcnn_lightning.app.command_line import command_with, override
from mrcnn_lightning.app.errors import say
from mrcnn_lightning.app.phases import save_last
from mrcnn_lightning.app.ranks import own_rank
from mrcnn_lightning.app.run_folder import slurm_job
from mrcnn_lightning.structures import Batch

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
if hasattr(signal, "SIGUSR1"):  # what SLURM sends some time before a job's end, if it is asked to
    _NAMES[signal.SIGUSR1] = "SIGUSR1"


class Stopped(BaseException):
    """The run was told to end. No `Exception`: nobody is to take it for a mistake and go on."""


class Stop:
    """What a run was told.

    Attributes:
        signum: the signal; None as long as none came.
        waits: whether the end waits for the next place where everything can be saved.
        is_saved: whether it was.
        checkpoint: what to go on from.
        requeues: whether a SLURM job is put into the queue again, to go on there.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.waits = False
        self.is_saved = False
        self.checkpoint: str | None = None
        self.requeues = False
        self._process = os.getpid()
        self._group: ProcessGroup | None = None

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """Take a signal; the next one ends the process at once.

        Raises:
            Stopped: nothing is to be saved.
        """
        if os.getpid() != self._process:  # a data worker, which ends with this process
            return
        for each in _NAMES:
            signal.signal(each, signal.SIG_DFL)
        if hasattr(signal, "SIGCHLD"):
            # A signal to all processes ends data workers too: torch would raise within the step.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.signum = signum
        if not self.waits:
            raise Stopped
        # No print: the signal may have come within one.
        os.write(2, b"\nstopping after this step; a second time ends at once\n")

    def listen(self) -> None:
        """Take signals from Lightning, whose answer is a collective wherever a rank may be."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and self.signum is None:
            for each in _NAMES.keys() - {signal.SIGINT}:
                signal.signal(each, self.receive)

    def on_all_ranks(self, trainer: lightning.Trainer) -> bool:
        """Whether a rank was told; all ask at the same place. Only hosts wait, no device does."""
        if trainer.world_size > 1:
            self.signum = self.agree(self.signum or 0, ReduceOp.MAX) or None
        return self.signum is not None

    def agree(self, value: int, how: ReduceOp.RedOpType) -> int:
        """The greatest or least of all ranks' numbers."""
        if self._group is None:
            self._group = new_group(backend="gloo")  # type: ignore[assignment]
        number = torch.tensor(value)
        all_reduce(number, how, self._group)
        return int(number)


class SaveAndStop(Callback):
    """Ends a fit that was told to: after the step or within the evaluation, on all ranks.

    Args:
        stop: what the run was told.
        run_dir: for the checkpoint.
    """

    def __init__(self, stop: Stop, *, run_dir: str) -> None:
        self.stop = stop
        self.run_dir = run_dir
        self._step = -1
        self._common_batches = 0

    def on_sanity_check_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Lightning has put its own handler in place."""
        self.stop.listen()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """From here on there is something to save."""
        self.stop.listen()
        self.stop.waits = True
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save, if this was a whole step. What it logs comes after this, hence no end yet."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            if self.stop.on_all_ranks(trainer):
                self._save(trainer)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        """End after a step."""
        self._end_if_saved()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """End after the last step of an epoch."""
        self._end_if_saved()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """End before an evaluation; a resumed run makes up for it."""
        self._end_if_saved()
        self.stop.listen()
        if self.stop.waits and trainer.world_size > 1:
            own = sum(int(num) for num in trainer.num_val_batches)
            self._common_batches = self.stop.agree(own, ReduceOp.MIN)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save and end within an evaluation."""
        # A rank may have a batch more than others, who wait for it elsewhere.
        is_common = trainer.world_size == 1 or batch_idx < self._common_batches
        if self.stop.waits and is_common and self.stop.on_all_ranks(trainer):
            self._save(trainer)
            self._end_if_saved()

    def finish(self, trainer: lightning.Trainer) -> None:
        """End after a fit and its last evaluation; from here on a signal ends at once again."""
        if self.stop.waits and self.stop.on_all_ranks(trainer):
            self._save(trainer)
        self._end_if_saved()
        self.stop.waits = False

    def _save(self, trainer: lightning.Trainer) -> None:
        self.stop.checkpoint = save_last(trainer, self.run_dir)
        self.stop.is_saved = True

    def _end_if_saved(self) -> None:
        if self.stop.is_saved:
            raise Stopped


@contextmanager
def stops_when_told(*, in_sweep: bool) -> Iterator[Stop]:
    """Answer signals: the run ends with a sentence and 128 plus the signal's number.

    Signals that the process ignores, as under nohup, stay ignored.

    Args:
        in_sweep: whether this is a job of a sweep, which ends too.
    """
    stop = Stop()
    before = {each: signal.getsignal(each) for each in _NAMES}
    heard = [each for each, handler in before.items() if handler != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    for each in heard:
        signal.signal(each, stop.receive)
    try:
        yield stop
    except BaseException as error:
        # Once all is saved, what goes wrong is others' end: a data worker's, another rank's.
        if stop.signum is None or not (isinstance(error, Stopped) or stop.is_saved):
            raise
        if own_rank() > 0:  # Lightning's launcher takes another status for a mistake
            sys.exit(0)
        say(_sentence(stop, in_sweep=in_sweep))
        sys.exit(128 + stop.signum)
    finally:
        for each in heard:
            signal.signal(each, before[each])


def _sentence(stop: Stop, *, in_sweep: bool) -> str:
    assert stop.signum is not None
    told = f"stopped by {_NAMES[signal.Signals(stop.signum)]}"
    if stop.requeues and stop.signum != signal.SIGINT and (job := slurm_job()) is not None:
        return f"{told}; {_requeue(job)}"
    saved = "everything is saved" if stop.is_saved else "there was nothing to save"
    again = "to go on" if stop.checkpoint else "to start again"
    # With resume=auto it is the same command.
    command = command_line(None if stop.requeues else stop.checkpoint, in_sweep=in_sweep)
    return f"{told}, {saved}; {again}: {command}"


def _requeue(job: str) -> str:
    """Put a SLURM job into the queue again, where it will find its folder."""
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"job {job} could not be requeued: {error}"
    if done.returncode != 0:
        return f"job {job} could not be requeued: {(done.stderr or done.stdout).strip()}"
    return f"job {job} is requeued, and goes on by itself"


def command_line(checkpoint: str | None, *, in_sweep: bool) -> str:
    """The command of this run, or of this job of a sweep, that goes on from a checkpoint."""
    overrides = list(HydraConfig.get().overrides.task) if in_sweep else sys.argv[1:]
    if checkpoint is not None:
        overrides = [each for each in overrides if not re.match(r"\+*ckpt_path=", each)]
        overrides.append(override("ckpt_path", checkpoint))
    return command_with(overrides)
