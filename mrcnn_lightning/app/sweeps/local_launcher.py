"""Each job of a sweep as a process of its own on this machine, several at a time if asked to."""

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, NoReturn

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import CompactHydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from mrcnn_lightning.app.command_line import command_with, config_options, of_jobs, override
from mrcnn_lightning.app.errors import ask_hydra, say, stop_asking_hydra
from mrcnn_lightning.app.record import read_record
from mrcnn_lightning.app.runs import print_runs, read_run
from mrcnn_lightning.app.sweeps.jobs import OUTPUT, Outcome, jobs
from mrcnn_lightning.user_error import UserError

log = logging.getLogger(__name__)

_WITHOUT_RESULT = ("failed", "stopped")
_FOLDER = re.compile(r"(run_dir|hydra\.sweep\.dir)=")


class _Job(NamedTuple):
    """A job before it starts.

    Attributes:
        name: of its folder within the sweep's.
        folder: of its run.
        overrides: all of them.
        varied: those that the sweep's command line has not.
        command: of its process.
    """

    name: str
    folder: Path
    overrides: list[str]
    varied: list[str]
    command: list[str]


class _FailedJob(JobReturn):
    """A job without a result; asking for it raises one sentence, and prints none of Hydra's."""

    @property  # type: ignore[misc]
    def return_value(self) -> Any:
        """Raise."""
        raise self._return_value


class LocalJobs:
    """Runs jobs for a sweep.

    Args:
        context: Hydra's, which composes.
        config: of the sweep.
        n_jobs: how many at a time.
        gpus_per_job: how many GPUs are a job's own.

    Raises:
        UserError: there are too few GPUs.
    """

    def __init__(
        self,
        context: HydraContext,
        config: DictConfig,
        *,
        n_jobs: int | None,
        gpus_per_job: int | None,
    ) -> None:
        self.context, self.config = context, config
        self.sweep_dir = Path(config.hydra.sweep.dir)
        groups = _groups_of_gpus(gpus_per_job)
        self._has_groups = bool(groups)
        if n_jobs is not None and n_jobs < 1:
            raise UserError(f"launcher.n_jobs={n_jobs} runs nothing; null is one at a time")
        if groups and n_jobs is not None and n_jobs > len(groups):
            raise UserError(
                f"launcher.n_jobs={n_jobs}, but there are GPUs for {len(groups)} jobs at a time"
            )
        self.n_jobs = n_jobs or len(groups) or 1
        at_once = max(self.n_jobs, config.hydra.sweeper.get("n_jobs") or 1)
        self._on_screen = at_once == 1
        self._groups: SimpleQueue[str] = SimpleQueue()
        for group in groups:
            self._groups.put(group)

    def launch(self, overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        """Run jobs and wait for all of them; one that fails does not end the others.

        Args:
            overrides: of each job.
            first: number of the first one.

        Raises:
            SystemExit: the sweep was told to end, and all its jobs have.
        """
        stop_asking_hydra()
        every = [self._job(list(each), first + index) for index, each in enumerate(overrides)]
        with jobs.told(), ThreadPoolExecutor(self.n_jobs) as pool:
            if self.n_jobs == 1 or len(every) == 1:
                outcomes = [self._run(job) for job in every]
            else:
                outcomes = list(pool.map(self._run, every))
        if len(every) > 1:
            self._print(every)
        is_own_sweep = threading.current_thread() is threading.main_thread()
        if jobs.signum is not None and is_own_sweep:
            own = [each for each in sys.argv[1:] if not _FOLDER.match(each)]
            end_as_told([*own, override("run_dir", str(self.sweep_dir))])
        failed = [
            job.name
            for job, outcome in zip(every, outcomes, strict=True)
            if outcome.status in _WITHOUT_RESULT
        ]
        if failed and is_own_sweep:
            ask_hydra()
        sentence = f"{len(failed)} of {len(every)} jobs did not finish: {', '.join(failed)}"
        return [
            _returned(job, outcome, f"{sentence} (in {self.sweep_dir})")
            for job, outcome in zip(every, outcomes, strict=True)
        ]

    def _print(self, every: list[_Job]) -> None:
        started = [job.folder for job in every if read_record(job.folder) is not None]
        if started:
            print_runs(self.sweep_dir, [read_run(folder) for folder in started])

    def _job(self, overrides: list[str], number: int) -> _Job:
        name = self._folder(overrides, number)
        folder = self.sweep_dir / name
        own = of_jobs([*overrides, *self.config.hydra.overrides.hydra])
        words = dict(each.split("=", 1) for each in own if "=" in each)
        if words.get("stage", self.config.stage) == "fit" and "resume" not in words:
            own.append("resume=auto")
        own += ["hydra.mode=RUN", override("run_dir", str(folder))]
        command = [sys.executable, sys.argv[0], *config_options(self.config.hydra), *own]
        written = {*self.config.hydra.overrides.task, "resume=auto"}
        varied = [each for each in overrides if each not in written]
        return _Job(name, folder, overrides, varied, command)

    def _folder(self, overrides: list[str], number: int) -> str:
        """The job's folder within the sweep's, mostly its number."""
        written: Any = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        if written["subdir"] == "${hydra:job.num}":
            return str(number)
        setup_globals()
        cfg = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(cfg)
        name = str(cfg.hydra.sweep.subdir)
        HydraConfig.instance().cfg = before
        return name

    def _run(self, job: _Job) -> Outcome:
        with self._gpus() as environment:
            if jobs.signum is not None:
                return Outcome("stopped")
            where = "" if self._on_screen else f" (it writes to {job.folder / OUTPUT})"
            log.info("job %s: %s%s", job.name, " ".join(job.varied), where)
            outcome = jobs.run(
                job.command, job.folder, environment=environment, on_screen=self._on_screen
            )
        result = outcome.error or ("" if outcome.ap is None else f"AP {outcome.ap:.3f}")
        log.info("job %s %s%s", job.name, outcome.status, f": {result}" if result else "")
        return outcome

    @contextmanager
    def _gpus(self) -> Iterator[dict[str, str]]:
        """Wait for GPUs of a job's own, if it is to have some; the variables that say so."""
        if not self._has_groups:
            yield {}
            return
        group = self._groups.get()
        try:
            yield {"CUDA_VISIBLE_DEVICES": group}
        finally:
            self._groups.put(group)


def end_as_told(overrides: Sequence[str]) -> NoReturn:
    """End a sweep that got a signal, and say how it goes on.

    Args:
        overrides: of the command that goes on with it.

    Raises:
        SystemExit: always.
    """
    assert jobs.signum is not None
    told = signal.Signals(jobs.signum).name
    say(f"stopped by {told}, and so were the jobs; to go on: {command_with(overrides)}")
    sys.exit(128 + jobs.signum)


def _groups_of_gpus(gpus_per_job: int | None) -> list[str]:
    """The GPUs of each job that runs at a time, as CUDA_VISIBLE_DEVICES names them."""
    if gpus_per_job is None:
        return []
    if gpus_per_job < 1:
        raise UserError(f"launcher.gpus_per_job={gpus_per_job} is no GPU; null lets jobs see all")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if len(every) < gpus_per_job:
        raise UserError(
            f"launcher.gpus_per_job={gpus_per_job}, but there are {len(every)} GPUs; null lets "
            "jobs see what is there"
        )
    starts = range(0, len(every) - gpus_per_job + 1, gpus_per_job)
    return [",".join(every[start : start + gpus_per_job]) for start in starts]


def _returned(job: _Job, outcome: Outcome, sentence: str) -> JobReturn:
    returned = _FailedJob() if outcome.status in _WITHOUT_RESULT else JobReturn()
    returned.overrides, returned.working_dir = job.overrides, str(Path.cwd())
    if isinstance(returned, _FailedJob):
        returned.status = JobStatus.FAILED
        returned._return_value = CompactHydraException(sentence)
    else:
        returned.status, returned._return_value = JobStatus.COMPLETED, outcome.ap
    return returned
