"""A trial that does worse than the others ends, on all ranks, and the study says where."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from optuna.trial import TrialState, create_trial

from mrcnn_lightning.training.callbacks.pruning import Pruning
from mrcnn_lightning.training.studies import ADDRESS, open_storage
from tests.conftest import command

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def words(
    tiny: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Those of trial 2 of a study whose other two found everything at steps 6 and 12."""
    address = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=open_storage(address), direction="maximize")
    for _ in range(2):
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE, value=1.0, intermediate_values={6: 1.0, 12: 1.0}
            )
        )
    study.ask()
    monkeypatch.setenv(ADDRESS, address)
    return tiny(
        "hparams_search=optuna",
        "hydra.mode=RUN",
        "trial={study_name:s,number:2}",
        "callbacks.pruning.pruner.n_startup_trials=2",
        "callbacks.pictures=null",
        "trainer.max_epochs=2",
        "trainer.check_val_every_n_epoch=1",
        f"run_dir={tmp_path}/run",
    )


def trial(tmp_path: Path) -> optuna.trial.FrozenTrial:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    return optuna.load_study(study_name="s", storage=storage).trials[2]


def test_a_worse_trial_is_pruned(run_main: Run, words: list[str], tmp_path: Path) -> None:
    status, output = run_main(*words)
    assert status == 0, output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("pruned", 6)
    assert list(trial(tmp_path).intermediate_values) == [6]  # the check before training is none
    assert trial(tmp_path).user_attrs["pruned_at"] == 6
    status, output = run_main(*words, "resume=auto")
    assert status == 0 and "is pruned: AP" in output  # at once
    # Killed after the pruner's word, and before the run said so.
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"status": "running"}))
    status, output = run_main(*words, "resume=auto")
    assert status == 0, output
    again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (again["status"], again["steps"], again["ap"]) == ("pruned", 6, record["ap"])


def test_the_last_evaluation_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for step, is_pruned in ((6, True), (12, False)):
        study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(1))
        asked = study.ask()
        monkeypatch.setattr(Pruning, "_open", lambda _, asked=asked: asked)
        trainer: Any = SimpleNamespace(
            state=SimpleNamespace(fn=TrainerFn.FITTING),
            sanity_checking=False,
            is_global_zero=True,
            callback_metrics={"val/ap": 0.1},
            global_step=step,
            estimated_stepping_batches=12,
            strategy=SimpleNamespace(broadcast=lambda value: value),
            should_stop=False,
        )
        pruning = Pruning(monitor="val/ap", pruner=optuna.pruners.NopPruner(), trial={"number": 0})
        task = SimpleNamespace(when_scored=lambda act: act(), scored_at=step)
        pruning.on_validation_end(trainer, task)
        assert (trainer.should_stop, pruning.pruned_at is not None) == (is_pruned, is_pruned)
        assert list(study.trials[0].intermediate_values) == [step]
        assert ("pruned_at" in study.trials[0].user_attrs) == is_pruned


def test_a_study_that_is_away_is_one_warning(
    run_main: Run, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "study.db").write_text("this is no database at all, but some other file" * 100)
    status, output = run_main(*words)
    assert status == 0, output
    assert output.count("callbacks.pruning: the study cannot be reached") == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("finished", 12)
    status, output = run_main(*words, "phases=[{trainer.max_epochs:1}]")
    assert status == 1 and "error: phases and callbacks.pruning do not go together" in output


@pytest.mark.slow
def test_all_ranks_end_together(words: list[str], tmp_path: Path) -> None:
    process = command(*words, "trainer.accelerator=cpu", "trainer.devices=2", cwd=tmp_path)
    assert process.returncode == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("pruned", 6)
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 6
