"""A study of real runs that is killed twice: as many trials as asked for, some of them pruned."""

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mrcnn_lightning.training.studies import open_storage
from tests.conftest import command


@pytest.mark.slow
def test_killed_twice(tiny: Callable[..., list[str]], tmp_path: Path) -> None:
    words = tiny(
        "hparams_search=optuna",
        "hydra.sweeper.n_trials=12",
        "launcher.n_jobs=2",
        "optimizer.lr=tag(log,interval(1e-5,2e-2))",
        "optimizer.weight_decay=tag(log,interval(1e-4,1e-1))",
        "hydra.sweeper.sampler.n_startup_trials=4",
        "callbacks.pruning.pruner.n_startup_trials=3",
        "callbacks.pictures=null",
        "trainer.max_epochs=15",
        "trainer.check_val_every_n_epoch=3",
    )
    folder = tmp_path / "runs" / "shapes" / "search"
    seed = random.randrange(10**6)
    print("seed of the kills", seed)
    chance = random.Random(seed)
    for with_jobs in (False, True):
        sweep = command(*words, cwd=tmp_path, wait=False)
        before = len(_ended(folder))
        while len(_ended(folder)) < before + 3:
            assert sweep.poll() is None
            time.sleep(0.2)
        time.sleep(chance.uniform(0, 15))
        jobs = _children(sweep.pid)
        sweep.kill()
        for job in jobs if with_jobs else []:
            os.killpg(job, signal.SIGKILL)
        sweep.communicate()
        print("killed with", len(_ended(folder)), "ended, jobs too:", with_jobs, jobs)
    said = command(*words, cwd=tmp_path, wait=False)
    output, _ = said.communicate(timeout=900)
    assert said.returncode == 0, output[-3000:]
    print(output[-4000:])
    study = optuna.load_study(study_name="search", storage=open_storage(_address(folder)))
    print(Counter(trial.state.name for trial in study.trials))
    assert [trial.number for trial in study.trials] == list(range(12))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    pruned = [trial for trial in study.trials if trial.state is TrialState.PRUNED]
    assert len(pruned) >= 2
    for trial in study.trials:
        record = json.loads((folder / str(trial.number) / "run.json").read_text())
        is_pruned = trial.state is TrialState.PRUNED
        assert record["status"] == ("pruned" if is_pruned else "finished")
        assert trial.value == pytest.approx(record["ap"], rel=1e-6)  # reported in float32
        assert record["steps"] == (trial.user_attrs["pruned_at"] if is_pruned else 90)
    (best,) = [line for line in output.splitlines() if "the best is trial" in line]
    again = subprocess.run(
        f"{best.partition(': ')[2]} run_dir={tmp_path}/again",
        shell=True,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    assert again.returncode == 0
    assert json.loads((tmp_path / "again" / "run.json").read_text())["ap"] == study.best_value


def _address(folder: Path) -> str:
    return f"sqlite:///{folder}/study.db"


def _ended(folder: Path) -> list[int]:
    if not (folder / "trials.csv").exists() and not (folder / "study.db").exists():
        return []
    try:
        study = optuna.load_study(study_name="search", storage=open_storage(_address(folder)))
        return [trial.number for trial in study.trials if trial.state.is_finished()]
    except KeyError:
        return []


def _children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [int(word) for word in listed.stdout.split()]
