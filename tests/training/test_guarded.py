"""A tracker that fails costs its curves, and what it has it is not given again."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from mrcnn_lightning.training.trackers.guarded import Guarded, Identity
from mrcnn_lightning.user_error import UserError


class Board(Logger):
    """A tracker that keeps what it is given in a list, and fails at a step."""

    name = version = "board"

    def __init__(self, given: list[tuple[int, dict[str, float]]], fails_at: int = 1000) -> None:
        super().__init__()
        self.given = given
        self.fails_at = fails_at
        self.calls = 0
        self.identity = {"id": "one"}
        self.experiment = None

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls += 1
        assert step is not None
        if step >= self.fails_at:
            raise ConnectionError("the server is away\nand this is a long story")
        self.given.append((step, dict(metrics)))

    def steps_given(self, name: str) -> list[int]:
        return [step for step, metrics in self.given if name in metrics]


class PurgedBoard(Board):
    """One that can forget."""

    def purge_from(self, step: int) -> None:
        self.given[:] = [each for each in self.given if each[0] < step]


def guarded(
    make: Callable[[Identity | None], Any], *, earlier: Identity | None = None
) -> tuple[Guarded, list[Identity]]:
    noted: list[Identity] = []
    return Guarded("board", make, earlier=earlier, note=noted.append), noted


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


def test_a_failure_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    board = Board([], fails_at=2)
    logger, _ = guarded(lambda _: board)
    for step in range(5):
        logger.log_metrics({"loss": 1.0}, step)
        logger.save()
    logger.log_picture("picture", None, 5)  # type: ignore[arg-type]
    logger.log_hyperparams({})
    logger.finalize("success")
    logger.close()
    assert [step for step, _ in board.given] == [0, 1] and board.calls == 3
    (warning,) = warnings(caplog)
    assert warning == (
        "logger.board has failed and is left alone from here on: ConnectionError: the server is "
        "away; training goes on, and its metrics are in csv/metrics.csv"
    )
    assert logger.experiment is None


def test_one_that_cannot_be_made_is_a_warning_too(caplog: pytest.LogCaptureFixture) -> None:
    def make(_: Identity | None) -> Any:
        raise OSError(28, "No space left on device")

    logger, noted = guarded(make)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_metrics({"loss": 1.0}, 1)
    assert len(warnings(caplog)) == 1 and "No space left on device" in caplog.text and not noted


def test_a_missing_package_is_no_failure_but_an_error() -> None:
    def make(_: Identity | None) -> Any:
        raise ModuleNotFoundError("no board here: pip install board")

    logger, _ = guarded(make)
    with pytest.raises(UserError, match=r"^logger.board: no board here: pip install board$"):
        logger.log_hyperparams({})


@pytest.mark.parametrize("kind", [Board, PurgedBoard])
def test_a_process_that_goes_on_gives_no_step_twice(kind: type[Board]) -> None:
    given: list[tuple[int, dict[str, float]]] = []
    first, noted = guarded(lambda _: kind(given))
    for step in range(6):
        first.log_metrics({"loss": step / 2, "epoch": 0}, step)
        first.log_metrics({"lr": 0.1, "epoch": 0}, step)  # the epoch is known by now
    assert noted == [{"id": "one"}]
    second, _ = guarded(lambda _: kind(given), earlier={"id": "one"})
    second.log_hyperparams({})
    second.go_on_after(4)
    for step in range(4, 8):
        second.log_metrics({"loss": step / 2, "epoch": 0}, step)
        second.log_metrics({"lr": 0.1, "epoch": 0}, step)
    second.log_metrics({"val/ap": 0.5, "epoch": 0}, 3)  # an evaluation that was owed
    for name in ("loss", "lr", "epoch"):
        assert sorted(step for step, values in given if name in values) == list(range(8)), name
    assert all(values["loss"] == step / 2 for step, values in given if "loss" in values)
    assert [step for step, values in given if "val/ap" in values] == [3]


def test_another_run_starts_with_nothing() -> None:
    given: list[tuple[int, dict[str, float]]] = []
    for earlier in (None, {"id": "another"}):
        logger, _ = guarded(lambda _: Board(given), earlier=earlier)
        logger.log_metrics({"loss": 1.0}, 0)
    assert len(given) == 2
