"""A search with Optuna whose every step may be the last: the same command goes on with it."""

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf
from optuna.samplers import GridSampler
from optuna.trial import Trial, TrialState

from mrcnn_lightning.app.command_line import command_with, of_jobs, quoted
from mrcnn_lightning.app.errors import sentence
from mrcnn_lightning.app.record import read_record
from mrcnn_lightning.app.sweeps.jobs import jobs
from mrcnn_lightning.app.sweeps.local_launcher import end_as_told
from mrcnn_lightning.app.sweeps.locks import is_run_alive
from mrcnn_lightning.app.sweeps.search_space import (
    as_override,
    first_value,
    grid,
    num_combinations,
    read_space,
)
from mrcnn_lightning.app.sweeps.study_report import report
from mrcnn_lightning.app.sweeps.study_storage import patiently, shown
from mrcnn_lightning.app.sweeps.trial_claims import Claimed, Claims
from mrcnn_lightning.training.studies import ADDRESS, open_storage
from mrcnn_lightning.user_error import UserError

log = logging.getLogger(__name__)

_SEARCH = "search"  # the user attribute of a study: what it varies, and what it leaves as it is
# Overrides that change no trial's result.
_ANY_TIME = re.compile(r"[+~]*(launcher|logger|hydra|run_dir|data\.num_workers|data\.cache_dir)\b")

_ERROR = "error"  # the user attribute of a trial that failed
_LOOK_EVERY = 0.3  # seconds


class Search:
    """A study, and the trials of it that this command runs.

    A trial's run is in the sweep's folder, under the trial's number. A trial that a command which
    died has left running is run on by the next one, from its last checkpoint.

    Args: those of `OptunaSweeper`.

    Raises:
        UserError: an option is not what it should be.
    """

    def __init__(
        self,
        context: HydraContext,
        launcher: Launcher,
        config: DictConfig,
        arguments: Sequence[str],
        *,
        sampler: Any,
        direction: Literal["maximize", "minimize"],
        storage: str | None,
        study_name: str | None,
        n_trials: int,
        n_jobs: int | None,
        max_failure_rate: float,
        custom_search_space: str | None,
        params: Mapping[str, Any] | None,
    ) -> None:
        self.launcher, self.config = launcher, config
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.study_name = study_name or self.folder.name
        self.has_own_storage = storage is None
        self.address = storage or f"sqlite:///{self.folder}/study.db"
        self.n_trials, self.max_failure_rate = n_trials, max_failure_rate
        self.n_jobs: int = getattr(launcher, "n_jobs", 1) if n_jobs is None else n_jobs
        self.custom = get_method(custom_search_space) if custom_search_space else None
        self.space = read_space(params or {}, arguments, context.config_loader)
        _check(direction, n_trials, self.n_jobs, max_failure_rate, config)
        if isinstance(sampler, partial) and sampler.func is GridSampler:
            values = grid(self.space.ranges)
            sampler = sampler(values)
            self.n_trials = min(n_trials, num_combinations(values))
        elif isinstance(sampler, partial):
            sampler = sampler()
        self.sampler, self.direction = sampler, direction
        if self.custom is None:  # before a trial could fail of it
            first = [as_override(key, first_value(each)) for key, each in self.space.ranges.items()]
            overrides = [*self.space.fixed.values(), *first]
            context.config_loader.load_sweep_config(config, overrides)
        self._stopped: set[int] = set()  # trials that were stopped, for the next command
        self._failure: UserError | None = None

    def run(self) -> None:
        """Run trials until the study has enough of them, then say which are the best.

        Raises:
            UserError: too many trials failed, or the storage is away.
            SystemExit: the sweep was told to end.
        """
        optuna.logging.disable_default_handler()
        optuna.logging.enable_propagation()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        os.environ[ADDRESS] = self.address  # for the jobs
        with jobs.told():
            with self._alone():
                self.study = patiently(self._open, self.address)
            self.claims = Claims(self.study, self.folder, self.address, is_own=self.has_own_storage)
            log.info("study %s in %s", self.study_name, shown(self.address))
            threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self.n_jobs)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                if jobs.signum is not None and not _passes_signals_on(self.launcher):
                    break  # its jobs live on by themselves
                for thread in threads:
                    thread.join(_LOOK_EVERY)
        if self._failure is not None:
            raise self._failure
        report(self.study, self.folder, self._command)
        if jobs.signum is not None:
            end_as_told(sys.argv[1:])
        self._complain()

    def _open(self) -> optuna.Study:
        study = optuna.create_study(
            study_name=self.study_name,
            storage=open_storage(self.address),
            sampler=self.sampler,
            direction=self.direction,
            load_if_exists=True,
        )
        if study.direction.name.lower() != self.direction:
            raise UserError(
                f"hydra.sweeper.direction={self.direction}, but the study {self.study_name} was "
                f"begun with {study.direction.name.lower()}: say another hydra.sweeper.study_name"
            )
        self._require_same_search(study)
        if study.get_trials(deepcopy=False):  # else a seed would draw the first trials once more
            self.sampler.reseed_rng()
        return study

    def _require_same_search(self, study: optuna.Study) -> None:
        """Refuse to add trials to those of another search, which would be taken for its own."""
        now = {key: f"{key} in {each}" for key, each in self.space.ranges.items()}
        now |= {key: each for key, each in self.space.fixed.items() if not _ANY_TIME.match(each)}
        before = study.user_attrs.get(_SEARCH)
        if before is None:
            study.set_user_attr(_SEARCH, now)
            return
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise UserError(
                    f"the study {self.study_name} was begun with {before.get(key, f'no {key}')}, "
                    f"and not {now.get(key, f'without {key}')}: say the same, or give this search "
                    "a hydra.sweeper.study_name of its own"
                )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and commands from choosing a trial at the same time."""
        with FileLock(self.folder / ".study.lock"):
            yield

    def _work(self) -> None:
        """Run one trial after the other."""
        try:
            while jobs.signum is None and self._failure is None:
                with self._alone():
                    claimed = self._claim()
                    if claimed is None:
                        return
                    overrides = patiently(partial(self._overrides, claimed.trial), self.address)
                with claimed.lock:
                    self._run(claimed.trial, overrides)
        except UserError as error:
            self._failure = error
        except Exception as error:
            log.exception("the sweep itself failed")
            self._failure = UserError(sentence(error))

    def _claim(self) -> Claimed | None:
        """A trial that nobody runs, or a new one; None if there are enough."""
        trials = patiently(lambda: self.study.get_trials(deepcopy=False), self.address)
        claimed = self.claims.left(trials, self._stopped)
        if claimed is not None:
            log.info("trial %d goes on", claimed.trial.number)
            return claimed
        num_failed = sum(each.state is TrialState.FAIL for each in trials)
        num_there = sum(each.state is not TrialState.WAITING for each in trials)
        if num_there >= self.n_trials or num_failed > self.max_failure_rate * self.n_trials:
            return None
        return self.claims.new()

    def _overrides(self, trial: Trial) -> list[str]:
        """Those of the trial's job."""
        try:
            for name, distribution in self.space.ranges.items():
                trial._suggest(name, distribution)
            if self.custom is not None:
                self.custom(self.config, trial)
        except ValueError as error:
            raise UserError(
                f"the study {self.study_name} was begun with another search space: {error}; give "
                "this one a hydra.sweeper.study_name of its own"
            ) from error
        if twice := trial.params.keys() & self.space.fixed.keys():
            raise UserError(f"{', '.join(sorted(twice))}: searched by custom_search_space and set")
        who = f"trial={{study_name:{quoted(self.study_name)},number:{trial.number}}}"
        resume = ["resume=auto"] if self.config.stage == "fit" else []
        return [*self._settings(trial.params), who, *resume]

    def _settings(self, params: Mapping[str, Any]) -> list[str]:
        """What a trial trains."""
        searched = [as_override(key, value) for key, value in params.items()]
        return [*self.space.fixed.values(), *searched]

    def _command(self, params: Mapping[str, Any]) -> str:
        """The command that trains a trial again, by itself."""
        return command_with([*of_jobs(self._settings(params)), "hydra.mode=RUN"])

    def _run(self, trial: Trial, overrides: list[str]) -> None:
        """Run a trial and tell the study how it ended."""
        folder = self.claims.folder_of(trial.number)
        while is_run_alive(folder) and jobs.signum is None:  # it outlived its command
            time.sleep(_LOOK_EVERY)
        value, error = self._launch(trial, overrides)
        status = (read_record(folder) or {}).get("status")
        if jobs.signum is not None or (error is not None and status == "stopped"):
            self._stopped.add(trial.number)
            return
        if error is not None:
            patiently(lambda: trial.set_user_attr(_ERROR, error), self.address)
            self._tell(trial, TrialState.FAIL, None)
        elif status == "pruned":
            self._tell(trial, TrialState.PRUNED, None)
        else:
            self._tell(trial, TrialState.COMPLETE, value)

    def _launch(self, trial: Trial, overrides: list[str]) -> tuple[float | None, str | None]:
        """AP, or why there is none."""
        try:
            (returned,) = self.launcher.launch([overrides], initial_job_idx=trial.number)
            value = returned.return_value
        except Exception as error:  # a launcher may raise whatever its machines do
            noted = read_record(self.claims.folder_of(trial.number)) or {}
            return None, noted.get("error") or sentence(error)
        if not isinstance(value, int | float) or value != value:
            return None, f"the run returned no number, but {value}"
        return float(value), None

    def _tell(self, trial: Trial, state: TrialState, value: float | None) -> None:
        def tell() -> None:
            with suppress(RuntimeError):  # a sampler that has nothing left to draw
                self.study.tell(trial, value, state, skip_if_finished=True)

        patiently(tell, self.address)

    def _complain(self) -> None:
        """Name trials that did not end, and raise if too many failed.

        Raises:
            UserError: they did.
        """
        trials = self.study.get_trials(deepcopy=False)
        left = [str(each.number) for each in trials if each.state is TrialState.RUNNING]
        if left:
            log.warning(
                "still running: %s, by other commands or left on other machines; the same command "
                "goes on with what was left, where it was",
                ", ".join(left),
            )
        failed = [str(each.number) for each in trials if each.state is TrialState.FAIL]
        if len(failed) > self.max_failure_rate * self.n_trials:
            raise UserError(
                f"{len(failed)} trials failed ({', '.join(failed)}), more than "
                f"hydra.sweeper.max_failure_rate={self.max_failure_rate} of {self.n_trials} allows"
            )


def _passes_signals_on(launcher: Launcher) -> bool:
    """Whether the launcher's jobs end when the sweep is told to."""
    from hydra_plugins.mrcnn_sweeps import LocalLauncher

    return isinstance(launcher, LocalLauncher)


def _check(
    direction: Any, n_trials: int, n_jobs: int, max_failure_rate: float, config: DictConfig
) -> None:
    """Refuse options that no search comes of.

    Raises:
        UserError: there is one.
    """
    if not isinstance(direction, str):
        raise UserError(
            f"hydra.sweeper.direction={direction} asks for several objectives, but a run returns "
            "one number, val/ap"
        )
    if direction not in ("maximize", "minimize"):
        raise UserError(f"hydra.sweeper.direction={direction} is neither maximize nor minimize")
    for key, number in (("n_trials", n_trials), ("n_jobs", n_jobs)):
        if number < 1:
            raise UserError(f"hydra.sweeper.{key}={number} runs nothing")
    if not 0 <= max_failure_rate <= 1:
        raise UserError(f"hydra.sweeper.max_failure_rate={max_failure_rate} is not from 0 to 1")
    written: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if written["subdir"] != "${hydra:job.num}":
        raise UserError(
            f"hydra.sweep.subdir={written['subdir']}: a trial's folder is its number, leave it out"
        )
