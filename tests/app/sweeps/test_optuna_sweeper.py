"""A study: as many trials as were asked for, whatever happens to those who run them."""

import csv
import io
import json
import os
import signal
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from mrcnn_lightning.app.sweeps import study_storage
from mrcnn_lightning.training.studies import open_storage
from tests.app.sweeps.conftest import Sweep, starts, wait_for

LR = "optimizer.lr=interval(0.0, 1.0)"
SEARCH = ("hparams_search=optuna", "hydra.sweeper.study_name=s", LR)
EVEN = "hydra.sweeper.n_trials=4"


def study(tmp_path: Path, storage: str | None = None) -> list[optuna.trial.FrozenTrial]:
    """The trials; their numbers are without a gap."""
    folders = list(tmp_path.glob("runs/*/s"))
    address = storage or f"sqlite:///{folders[0]}/study.db"
    trials = optuna.load_study(study_name="s", storage=open_storage(address)).trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    return trials


def test_a_study_and_what_it_leaves(sweep: Sweep, tmp_path: Path) -> None:
    words = (*SEARCH, "name=prunes", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=3")
    status, output = sweep(*words, EVEN, "launcher.n_jobs=2", "seed=choice(1, 2)", draws=True)
    assert status == 0, output
    trials = study(tmp_path)
    folder = tmp_path / "runs" / "prunes" / "s"
    assert len(trials) == 4 and {trial.state for trial in trials} <= {
        TrialState.COMPLETE,
        TrialState.PRUNED,
    }
    for trial in trials:
        (line,) = starts(folder / str(trial.number))
        lr = trial.params["optimizer.lr"]
        assert f"optimizer.lr={lr} seed={trial.params['seed']} " in line
        assert f"trial={{study_name:s,number:{trial.number}}} resume=auto " in line
        assert (trial.state is TrialState.PRUNED) == (lr > 0.5)
        assert trial.state is TrialState.PRUNED or trial.value == lr
    best = max(trial.value for trial in trials if trial.value is not None)
    result = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert result["name"] == "optuna" and result["best_value"] == best
    assert result["best_params"]["optimizer.lr"] == best
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["optimizer.lr"] for row in rows] == [
        str(trial.params["optimizer.lr"]) for trial in trials
    ]
    for picture in ("history", "importances", "parallel_coordinates"):
        assert (folder / f"{picture}.png").stat().st_size > 5000
    assert f"optimizer.lr={best} " in output.splitlines()[-1]
    assert output.splitlines()[-1].endswith("hydra.mode=RUN")

    status, _ = sweep(*words, EVEN, "launcher.n_jobs=2", "seed=choice(1, 2)")
    assert status == 0 and study(tmp_path)[3].params == trials[3].params  # there was nothing to do
    status, _ = sweep(*words, "hydra.sweeper.n_trials=6", "seed=choice(1, 2)")
    drawn = {trial.params["optimizer.lr"] for trial in study(tmp_path)}
    assert status == 0 and len(drawn) == 6  # the seed does not draw the first ones once more
    status, output = sweep(*words, "hydra.sweeper.n_trials=7", "seed=choice(1, 3)")
    assert status == 1 and "Traceback" not in output
    assert "error: the study s was begun with" in output.splitlines()[-1]


def test_killed_at_any_time_no_trial_is_lost(
    started: Callable[..., Process], tmp_path: Path
) -> None:
    """Once the sweep alone, whose jobs live on; once all of it."""
    folder, gate = tmp_path / "runs" / "waits" / "s", tmp_path / "gate"
    words = (*SEARCH, "name=waits", f"data_root={gate}", EVEN, "launcher.n_jobs=2")
    process = started(*words)
    wait_for(lambda: (folder / "0" / "waits").exists() and (folder / "1" / "waits").exists())
    process.kill()
    process.join()
    first = [trial.params for trial in study(tmp_path)]
    process = started(*words)
    process.join(1.5)
    assert process.is_alive() and len(starts(folder / "0")) == len(starts(folder / "1")) == 1
    gate.touch()
    wait_for(lambda: (folder / "3" / "run.json").exists())
    process.kill()
    process.join()
    process = started(*words)
    process.join()
    output = (tmp_path / "sweep.txt").read_text()
    assert process.exitcode == 0, output
    trials = study(tmp_path)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert [trial.params for trial in trials[:2]] == first
    assert [trial.value for trial in trials] == [trial.params["optimizer.lr"] for trial in trials]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]


def test_told_to_end_and_gone_on_with(started: Callable[..., Process], tmp_path: Path) -> None:
    folder, gate = tmp_path / "runs" / "waits" / "s", tmp_path / "gate"
    words = (*SEARCH, "name=waits", f"data_root={gate}", "hydra.sweeper.n_trials=1")
    process = started(*words)
    wait_for((folder / "0" / "waits").exists)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 128 + signal.SIGINT
    assert [trial.state for trial in study(tmp_path)] == [TrialState.RUNNING]
    assert json.loads((folder / "0" / "run.json").read_text())["status"] == "running"


def test_two_commands_work_on_one_study(started: Callable[..., Process], tmp_path: Path) -> None:
    folder, gate = tmp_path / "runs" / "waits" / "s", tmp_path / "gate"
    words = (*SEARCH, "name=waits", f"data_root={gate}", EVEN)
    commands = [started(*words, output=f"{number}.txt") for number in range(2)]
    wait_for(lambda: (folder / "0" / "waits").exists() and (folder / "1" / "waits").exists())
    gate.touch()
    for command in commands:
        command.join()
        assert command.exitcode == 0
    assert [trial.state for trial in study(tmp_path)] == [TrialState.COMPLETE] * 4
    assert sum(len(starts(folder / str(number))) for number in range(4)) == 4


def test_failed_trials_are_named_and_too_many_end_the_search(sweep: Sweep, tmp_path: Path) -> None:
    words = ("hparams_search=optuna", "hydra.sweeper.study_name=s", "optimizer.lr=choice(0.1,0.9)")
    grid = ("hydra/sweeper/sampler=grid", "name=fails", "seed=range(0,3)")
    status, output = sweep(*words, *grid, "hydra.sweeper.max_failure_rate=0.5")
    assert status == 0, output
    trials = study(tmp_path)
    assert len(trials) == 6  # the grid has no more
    assert len({tuple(trial.params.items()) for trial in trials}) == 6
    failed = [trial for trial in trials if trial.state is TrialState.FAIL]
    assert [trial.params["optimizer.lr"] for trial in failed] == [0.9] * 3
    assert failed[0].user_attrs["error"] == "lr is above 0.5"
    for trial in failed:
        assert f"trial {trial.number} failed: lr is above 0.5" in output
    status, output = sweep(*words, *grid, "hydra.sweeper.max_failure_rate=0.4")
    assert status == 1 and output.splitlines()[-1].startswith("error: 3 trials failed (")


def test_a_storage_that_goes_away_loses_nothing(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_storage, "WAITS", [0.01, 0.01])
    words = (*SEARCH, "name=away", "hydra.sweeper.n_trials=2", "launcher.n_jobs=2")
    tell, calls = optuna.Study.tell, []

    def away(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        raise StorageInternalError("database or disk is full")

    monkeypatch.setattr(optuna.Study, "tell", away)
    status, output = sweep(*words)
    assert status == 1 and "Traceback" not in output and len(calls) == 6
    assert "study's storage: database or disk is full; trying again" in output
    assert output.splitlines()[-1].startswith("error: the study's storage sqlite:///")
    assert output.count("finished: AP") == 2  # no job was harmed
    monkeypatch.setattr(optuna.Study, "tell", tell)
    status, _ = sweep(*words)
    trials = study(tmp_path)
    assert status == 0 and [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert [trial.value for trial in trials] == [trial.params["optimizer.lr"] for trial in trials]


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_storage_of_ones_own(sweep: Sweep, tmp_path: Path, kind: str) -> None:
    storage = f"{kind}:///{tmp_path}/own.{kind}"
    status, output = sweep(
        *SEARCH, f"hydra.sweeper.storage='{storage}'", "hydra.sweeper.n_trials=1"
    )
    assert status == 0, output
    assert len(study(tmp_path, storage)) == 1
    assert not list(tmp_path.glob("runs/*/s/study.db"))


def test_a_trial_that_was_only_just_created(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command died before it noted the folder; one of another machine's is left alone."""
    storage = f"sqlite:///{tmp_path}/own.db"
    words = (*SEARCH, f"hydra.sweeper.storage='{storage}'", "hydra.sweeper.n_trials=2")
    begun = optuna.create_study(study_name="s", storage=open_storage(storage), direction="maximize")
    ours, elsewhere = begun.ask(), begun.ask()
    (tmp_path / "runs" / "mask_rcnn" / "s" / "0").mkdir(parents=True)
    elsewhere.set_user_attr("folder", "/on/another/machine/1")
    status, output = sweep(*words)
    assert status == 0 and "still running: 1, by other commands or left on other" in output
    trials = study(tmp_path, storage)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert trials[ours.number].params.keys() == {"optimizer.lr"}


def test_a_full_disk_leaves_no_half_a_line_in_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"journal:///{tmp_path}/study.log"
    begun = optuna.create_study(study_name="s", storage=open_storage(address))
    write = io.FileIO.write

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            return write(self, bytes(data)[: len(data) // 2])

    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: Full(path, "ab"))
    with pytest.raises(OSError, match="no space left"):
        begun.ask()
    monkeypatch.undo()
    begun.ask()
    assert len(optuna.load_study(study_name="s", storage=open_storage(address)).trials) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hydra.sweeper.direction=[maximize,minimize]"], "asks for several objectives"),
        (["hydra.sweeper.direction=up"], "is neither maximize nor minimize"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0 runs nothing"),
        (["hydra/sweeper/sampler=grid"], "optimizer.lr: a grid has no intervals"),
        (["hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: a trial's folder is its number"),
        (["model=choice(1"], "cannot read the override"),
        (["optimizer.rate=interval(0, 1)"], "optimizer.rate is no key: there are lr"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(
    sweep: Sweep, words: list[str], message: str
) -> None:
    status, output = sweep(*SEARCH, *words)
    assert status == 1 and output.startswith("error: ") and message in output
    assert output.count("\n") == 1
