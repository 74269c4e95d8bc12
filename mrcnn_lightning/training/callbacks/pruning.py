"""Ends a trial of a search that does worse than the others did."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import optuna
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from mrcnn_lightning.training.studies import ADDRESS, open_storage
from mrcnn_lightning.user_error import UserError


class Pruning(Callback):
    """Reports each evaluation to the study, and ends the fit on all ranks if the pruner says so.

    Rank 0 asks. The last evaluation is reported too, but ends nothing any more. A study that cannot
    be reached is one warning.

    Args:
        monitor: the metric.
        pruner: one of Optuna's.
        trial: `study_name` and `number`; None is no trial of a search, where this does nothing.

    Attributes:
        pruned_at: the step at which the fit was ended.
    """

    def __init__(
        self, *, monitor: str, pruner: optuna.pruners.BasePruner, trial: Mapping[str, Any] | None
    ) -> None:
        self.monitor, self.pruner, self.trial = monitor, pruner, trial
        self.pruned_at: int | None = None
        self._opened: optuna.trial.Trial | None = None
        self._has_warned = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """End at once what was ended before, by a process that was killed before it said so."""
        if self.trial is None:
            return
        before = None
        if trainer.is_global_zero:
            before = self._quietly(lambda: self._open().user_attrs.get("pruned_at"))
        self.pruned_at = trainer.strategy.broadcast(before)
        if self.pruned_at is not None:
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Report and decide."""
        is_fit = trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking
        if self.trial is not None and is_fit:
            pl_module.when_scored(lambda: self._decide(trainer, pl_module.scored_at))

    def _decide(self, trainer: lightning.Trainer, step: int) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(
                f"callbacks.pruning.monitor={self.monitor} is not logged; there are {known}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        has_more = trainer.global_step < trainer.estimated_stepping_batches
        is_ended = trainer.is_global_zero and bool(
            self._quietly(lambda: self._report(value, step, has_more))
        )
        if trainer.strategy.broadcast(is_ended):
            trainer.should_stop = True
            self.pruned_at = trainer.global_step

    def _report(self, value: float, step: int, has_more: bool) -> bool:
        """Tell the study an evaluation; whether the fit, if it has more to do, is to end."""
        trial = self._open()
        known = trial.study._storage.get_trial(trial._trial_id).intermediate_values
        if step not in known:  # a resumed run makes up for an evaluation that was cut off
            trial.report(value, step)
        is_ended = has_more and trial.should_prune()
        if is_ended:
            trial.set_user_attr("pruned_at", step)
        return is_ended

    def _quietly(self, ask: Callable[[], Any]) -> Any:
        """What the study says; None and one warning where it cannot be reached."""
        try:
            return ask()
        except Exception as error:  # whatever a database says is no reason to end a training
            if not self._has_warned:
                line = (str(error) or type(error).__name__).partition("\n")[0]
                rank_zero_warn(f"callbacks.pruning: the study cannot be reached: {line}")
                self._has_warned = True
            return None

    def _open(self) -> optuna.trial.Trial:
        """The trial, as the search has made it."""
        if self._opened is None:
            assert self.trial is not None
            address = os.environ.get(ADDRESS)
            if address is None:
                raise OSError(f"{ADDRESS} is not set, as a sweep does")
            study = optuna.load_study(
                study_name=self.trial["study_name"],
                storage=open_storage(address),
                pruner=self.pruner,
            )
            (frozen,) = (
                each
                for each in study.get_trials(deepcopy=False)
                if each.number == self.trial["number"]
            )
            self._opened = optuna.trial.Trial(study, frozen._trial_id)
        return self._opened
