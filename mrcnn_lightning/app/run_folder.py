"""The folder of a run: its own, the same on all its processes, and held while it lives."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from hydra.experimental.callback import Callback
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf, read_write
from torch.distributed import TCPStore

from mrcnn_lightning.app.errors import ERROR_FILE, say, stop_asking_hydra
from mrcnn_lightning.app.ranks import own_rank
from mrcnn_lightning.user_error import UserError

try:
    import fcntl
except ImportError:  # Windows: folders are the runs' own, but nobody is kept out of a named one
    fcntl = None  # type: ignore[assignment]

_KEYS = {"run": "run_dir", "sweep": "hydra.sweep.dir"}
_SHARED_BY = "hydra_plugins.mrcnn_sweeps.OptunaSweeper"  # several commands work on one study
_HYDRAS_OWN = "${hydra:runtime.output_dir}"
_LOOK_EVERY = 0.1  # seconds
_WAIT = timedelta(minutes=30)  # as long as torch waits for all processes
_held: list[TextIO] = []
_stores: list[TCPStore] = []  # rank 0 serves it as long as the run lives


class RunFolder(Callback):
    """Settles the folder before Hydra makes it.

    One that is named by the time is made exclusively, `_2`, `_3`, ... where another run has it. One
    that the user named (`run_dir`) may be there, for a run that goes on; only one run at a time may
    use it. A SLURM job that goes on by itself has a folder with its number, which it keeps when it
    is put into the queue again.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Settle the folder of a run."""
        with _or_exit("run_dir"):
            place = _meeting_place(config)
            if place is None and own_rank() > 0:  # Lightning's launcher told it
                return
            if place is not None:
                # Lightning knows it later, where nodes are started by hand.
                setattr(rank_zero_only, "rank", place[0])  # noqa: B010
            folder = ""
            if place is None or place[0] == 0:
                _name(config)
                folder = _make(config, "run")
                Path(folder, ERROR_FILE).unlink(missing_ok=True)
            with read_write(config.hydra):
                if place is not None:
                    folder = _agree(*place, folder)
                    if place[0] > 0:
                        config.hydra.job.name += f"_rank_{place[0]}"  # for a log of its own
                config.hydra.run.dir = folder

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Settle the folder of a sweep; those of its jobs are in it."""
        with _or_exit("hydra.sweep.dir"):
            wanted = named_folder(config)
            if wanted is not None:
                with read_write(config.hydra):
                    config.hydra.sweep.dir = wanted
                    task: Any = config.hydra.overrides.task
                    config.hydra.overrides.task = [
                        each for each in task if not each.startswith("run_dir=")
                    ]
                    config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{wanted}'")
            folder = _make(config, "sweep")
            if folder != config.hydra.sweep.dir:
                with read_write(config.hydra):  # each job's configuration is composed anew
                    config.hydra.sweep.dir = folder
                    config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")


def release() -> None:
    """Let others use the folder; a process that dies lets go of it too."""
    while _held:
        _held.pop().close()


@contextmanager
def _or_exit(key: str) -> Iterator[None]:
    """Hydra would make a warning of an error here."""
    stop_asking_hydra()
    try:
        yield
    except UserError as error:
        say(f"error: {error}")
        sys.exit(1)
    except OSError as error:
        say(f"error: the run's folder cannot be made: {error}; say another with {key}=DIR")
        sys.exit(1)
    except RuntimeError as error:  # torch's, of its store
        say(f"error: the processes of this run cannot meet: {str(error).splitlines()[0]}")
        sys.exit(1)


def named_folder(config: DictConfig) -> str | None:
    """What a user said for `run_dir`, if anything."""
    written: Any = OmegaConf.to_container(config, resolve=False)
    return None if written["run_dir"] == _HYDRAS_OWN else str(config.run_dir)


def _name(config: DictConfig) -> None:
    """Let Hydra make the folder that `run_dir` names, or one that a requeued job finds again.

    Raises:
        UserError: the run is to go on by itself, but its folder would be another each time.
    """
    wanted = named_folder(config)
    written: Any = OmegaConf.to_container(config.hydra.run, resolve=False)
    if wanted is None and config.resume == "auto" and "${now:" in written["dir"]:
        job = slurm_job()
        if job is None:
            raise UserError(
                "resume=auto goes on in the same folder, but this run's is named by the time: say "
                "run_dir=DIR"
            )
        wanted = f"runs/{config.name}/slurm_{job}"
    if wanted is not None:
        with read_write(config.hydra):
            config.hydra.run.dir = wanted


def slurm_job() -> str | None:
    """The number of the SLURM job that this process is of, as `scontrol` takes it."""
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    return job if array is None else f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def _make(config: DictConfig, mode: str) -> str:
    """Make the folder of a `run` or `sweep`, and hold it."""
    wanted = Path(config.hydra[mode].dir)
    written: Any = OmegaConf.to_container(config.hydra[mode], resolve=False)
    is_new = "${now:" in written["dir"]
    folder = wanted
    for number in count(2):
        try:
            folder.mkdir(parents=True, exist_ok=not is_new)
            break
        except FileExistsError:
            if not is_new:
                raise
            folder = wanted.with_name(f"{wanted.name}_{number}")
    if mode == "run" or config.hydra.sweeper._target_ != _SHARED_BY:
        _hold(folder, _KEYS[mode])
    return str(folder)


def _hold(folder: Path, key: str) -> None:
    """Keep other runs out of a folder.

    Raises:
        UserError: a run that lives has it.
    """
    if fcntl is None:
        return
    file = (folder / ".lock").open("a+")
    try:
        # This kind of lock is not handed on to data workers, which may outlive the run a little.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise UserError(
            f"{key}={folder} is in use by another run ({file.read()}): wait for its end, or give "
            "another folder"
        ) from None
    except OSError:  # a file system without locks
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _held.append(file)


def _meeting_place(config: DictConfig) -> tuple[int, int, str, int] | None:
    """Rank, number of other processes, address and port, if they are started from outside."""
    if config.trainer.num_nodes == config.trainer.devices == 1:
        return None
    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            own = kind()
            return own.global_rank(), own.world_size() - 1, own.main_address, own.main_port
    has_node = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= os.environ.keys()
    if has_node and "LOCAL_RANK" not in os.environ:
        return (
            int(os.environ["NODE_RANK"]),
            config.trainer.num_nodes - 1,
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
        )
    return None


def _agree(rank: int, others: int, address: str, port: int, folder: str) -> str:
    """The folder that rank 0 made, which waits until `others` know it."""
    if rank > 0:
        say(f"rank {rank} waits for rank 0 at {address}:{port}")
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun
    store = TCPStore(
        address,
        port,
        is_master=rank == 0 and not served,
        timeout=_WAIT,
        wait_for_workers=False,
        multi_tenant=True,  # torch serves its own on the same port later
    )
    key = f"mrcnn_lightning/run_folder/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if rank > 0:
        found: str = store.get(key).decode()
        store.add(f"{key}/read", 1)
        return found
    store.set(key, str(Path(folder).absolute()))
    _stores.append(store)
    # The store ends with this process, which may find that there is nothing to do.
    end = time.monotonic() + _WAIT.total_seconds()
    while not served and store.add(f"{key}/read", 0) < others and time.monotonic() < end:
        time.sleep(_LOOK_EVERY)
    return folder
