"""A tracker whose failure costs its curves, never the training."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image

from mrcnn_lightning.user_error import UserError

log = logging.getLogger(__name__)

# What a tracker calls a run, and where it is; as a json can hold it.
Identity = dict[str, str]
# What a user can mend before anything is trained.
_MISTAKES = (ImportError, MisconfigurationException, UserError)


class Guarded(Logger):
    """Holds another logger, which is made at its first use, and on rank 0 alone.

    Whatever goes wrong in it is one warning, and from then on it is left alone. It is given no
    value twice: neither in a process nor in those that go on with the run.

    Args:
        key: of the logger in the configuration, for the warning.
        make: makes it, given the `identity` of the run that it is to go on with, or None.
        earlier: that identity, as an earlier process noted it; None starts a run.
        note: is told the identity of the run before the run is given anything.
    """

    def __init__(
        self,
        key: str,
        make: Callable[[Identity | None], Any],
        *,
        earlier: Identity | None,
        note: Callable[[Identity], None],
    ) -> None:
        super().__init__()
        self.key = key
        self.is_lost = False
        self._make = make
        self._earlier = earlier
        self._note = note
        self._tracker: Any = None
        self._given: dict[str, set[int]] = {}  # steps of each name

    @rank_zero_only
    def open(self) -> None:
        """Make the logger, and let it begin or go on.

        Raises:
            UserError: the configuration is wrong, or a package is missing.
        """
        if self._tracker is not None or self.is_lost:
            return
        try:
            self._tracker = self._make(self._earlier)
            identity = getattr(self._tracker, "identity", None)
            if identity is None or identity != self._earlier:
                self._earlier = None
            if identity is not None:
                self._note(identity)
            _ = self._tracker.experiment
        except Exception as error:
            if isinstance(cause := error.__cause__ or error, _MISTAKES):
                raise UserError(f"logger.{self.key}: {cause}") from error
            self._leave_alone(error)

    @rank_zero_only
    def go_on_after(self, step: int) -> None:
        """Be ready for the steps that follow a checkpoint.

        Args:
            step: how many steps were trained.
        """
        self._given = {}
        if self._has("purge_from"):
            self._try("purge_from", step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass on what is new."""
        self.open()
        step = step or 0
        new = {name: value for name, value in metrics.items() if not self._is_given(name, step)}
        if new.keys() - {"epoch"}:
            self._give(new, step, "log_metrics", new, step)

    @rank_zero_only
    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Pass on a picture, if the logger shows any."""
        self.open()
        if self._has("log_picture") and not self._is_given(name, step):
            self._give([name], step, "log_picture", name, picture, step)

    @rank_zero_only
    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Pass on a table, if the logger shows any."""
        self.open()
        if self._has("log_rows") and not self._is_given(name, step):
            self._give([name], step, "log_rows", name, columns, rows, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Pass on the configuration."""
        self.open()
        self._try("log_config" if self._has("log_config") else "log_hyperparams", params)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Pass on that there is a new checkpoint."""
        self._try("after_save_checkpoint", checkpoint_callback)

    @rank_zero_only
    def save(self) -> None:
        """Let the logger write what it holds back."""
        self._try("save")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Tell the logger how a fit or an evaluation ended."""
        self._try("finalize", status)

    @rank_zero_only
    def close(self) -> None:
        """End the run in the tracker; in a sweep the next job has one of its own."""
        if self._has("close"):
            self._try("close")

    @property
    def experiment(self) -> Any:
        """What the logger holds; None where it failed, and on other ranks than 0."""
        self.open()
        return None if self._tracker is None else self._tracker.experiment

    @property
    def name(self) -> str:
        """The key of the logger."""
        return self.key

    @property
    def version(self) -> str:
        """Nothing: Lightning would show it in the progress bar."""
        return ""

    def _is_given(self, name: str, step: int) -> bool:
        if name not in self._given:
            asks = self._earlier is not None and self._has("steps_given")
            self._given[name] = set((self._try("steps_given", name) if asks else None) or ())
        return step in self._given[name]

    def _give(self, names: Iterable[str], step: int, method: str, *args: Any) -> None:
        self._try(method, *args)
        for name in names:
            self._given[name].add(step)

    def _has(self, method: str) -> bool:
        return self._tracker is not None and hasattr(self._tracker, method)

    def _try(self, method: str, *args: Any) -> Any:
        if self._tracker is None:
            return None
        try:
            return getattr(self._tracker, method)(*args)
        except Exception as error:
            self._leave_alone(error)
            return None

    def _leave_alone(self, error: Exception) -> None:
        self.is_lost, self._tracker = True, None
        log.warning(
            "logger.%s has failed and is left alone from here on: %s; training goes on, and its "
            "metrics are in csv/metrics.csv",
            self.key,
            _first_line(error.__cause__ or error),
        )
        log.debug("logger.%s", self.key, exc_info=error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
