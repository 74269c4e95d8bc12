"""What Hydra finds of this project's sweeps; the rest is in `mrcnn_lightning.app.sweeps`.

Hydra imports this file at every start, hence the late imports.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Each job is a process of its own on this machine.

    Args:
        n_jobs: how many at a time; None is one, or with `gpus_per_job` as many as have GPUs.
        gpus_per_job: how many GPUs each job sees, which are its own; None is all.
    """

    def __init__(self, n_jobs: int | None, gpus_per_job: int | None) -> None:
        self.n_jobs, self.gpus_per_job = n_jobs, gpus_per_job

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take the sweep's configuration."""
        from mrcnn_lightning.app.errors import or_exit
        from mrcnn_lightning.app.sweeps.local_launcher import LocalJobs

        with or_exit():
            self._jobs = LocalJobs(
                hydra_context, config, n_jobs=self.n_jobs, gpus_per_job=self.gpus_per_job
            )
        self.n_jobs = self._jobs.n_jobs

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run jobs; several threads may do this at once."""
        return self._jobs.launch(job_overrides, initial_job_idx)


class OptunaSweeper(Sweeper):
    """Searches with Optuna; the keys are those of Hydra's official plugin.

    Args:
        sampler: any of Optuna's; a `functools.partial` of one that wants the search space.
        direction: `maximize` or `minimize` what a run returns.
        storage: an address of SQLAlchemy's, or `journal:///FILE`; None is a file in the sweep's
            folder.
        study_name: of the study; None is the name of the sweep's folder.
        n_trials: how many trials the study is to have, those of earlier commands too.
        n_jobs: how many at a time; None is as many as the launcher runs.
        max_failure_rate: the part of `n_trials` that may fail before the search ends.
        custom_search_space: a function of the configuration and a trial, which suggests more.
        params: values for keys: ranges to search, or fixed.
    """

    def __init__(
        self,
        sampler: Any,
        direction: str,
        storage: str | None,
        study_name: str | None,
        n_trials: int,
        n_jobs: int | None,
        max_failure_rate: float,
        custom_search_space: str | None,
        params: Mapping[str, Any] | None,
    ) -> None:
        self._options = {
            "sampler": sampler,
            "direction": direction,
            "storage": storage,
            "study_name": study_name,
            "n_trials": n_trials,
            "n_jobs": n_jobs,
            "max_failure_rate": max_failure_rate,
            "custom_search_space": custom_search_space,
            "params": params,
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take the sweep's configuration."""
        from hydra.core.plugins import Plugins

        self._context, self._config = hydra_context, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has enough."""
        from mrcnn_lightning.app.errors import or_exit
        from mrcnn_lightning.app.sweeps.optuna_sweeper import Search

        with or_exit():
            Search(self._context, self._launcher, self._config, arguments, **self._options).run()
