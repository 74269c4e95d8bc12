"""Who runs which trial of a study: each has a folder and a lock in it, for as long as it is run."""

from collections.abc import Container, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from mrcnn_lightning.app.sweeps.locks import take_lock
from mrcnn_lightning.app.sweeps.study_storage import patiently

_FOLDER = "folder"  # the user attribute of a trial: where its run is
_LOCK = ".trial"
_CREATED_BY_NOW = timedelta(minutes=5)


class Claimed(NamedTuple):
    """A trial that this process has to itself, as long as it keeps the lock."""

    trial: Trial
    lock: BinaryIO


class Claims:
    """Gives out trials; who asks is alone in doing so.

    Args:
        study: of the trials.
        folder: of the sweep; a trial's is in it, under its number.
        address: of the storage.
        is_own: whether the storage is this folder's, so that all trials are.
    """

    def __init__(self, study: optuna.Study, folder: Path, address: str, *, is_own: bool) -> None:
        self.study, self.folder = study, folder
        self.address, self.is_own = address, is_own

    def left(self, trials: Sequence[FrozenTrial], stopped: Container[int]) -> Claimed | None:
        """A trial that a dead command has left here, if there is one.

        Args:
            trials: of the study.
            stopped: numbers of those that were told to end, and are not to go on now.
        """
        for frozen in trials:
            if frozen.state is not TrialState.RUNNING or frozen.number in stopped:
                continue
            lock = self._take(frozen)
            if lock is None:
                continue
            trial = Trial(self.study, frozen._trial_id)
            if self._is_running(trial):
                return Claimed(trial, lock)
            lock.close()  # its command told how it ended, and let go of it, just now
        return None

    def _is_running(self, trial: Trial) -> bool:
        storage = self.study._storage
        now = patiently(lambda: storage.get_trial(trial._trial_id), self.address)
        return now.state is TrialState.RUNNING

    def new(self) -> Claimed:
        """A new trial."""
        trial = patiently(self.study.ask, self.address)
        folder = self.folder_of(trial.number)
        folder.mkdir(exist_ok=True)
        patiently(lambda: trial.set_user_attr(_FOLDER, str(folder)), self.address)
        lock = take_lock(folder / _LOCK)
        assert lock is not None, folder
        return Claimed(trial, lock)

    def folder_of(self, number: int) -> Path:
        """The folder of a trial's run."""
        return self.folder / str(number)

    def _take(self, frozen: FrozenTrial) -> BinaryIO | None:
        """The lock of a trial; None if its command lives, or it is another folder's."""
        folder = self.folder_of(frozen.number)
        if _FOLDER not in frozen.user_attrs:  # left between its creation and the note of its place
            assert frozen.datetime_start is not None
            is_old = datetime.now() - frozen.datetime_start > _CREATED_BY_NOW
            if not (folder.is_dir() or self.is_own or is_old):
                return None
            folder.mkdir(exist_ok=True)
        elif frozen.user_attrs[_FOLDER] != str(folder) or not folder.is_dir():
            return None
        return take_lock(folder / _LOCK)
