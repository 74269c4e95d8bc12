"""Tables of runs, from folders as runs leave them."""

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from mrcnn_lightning.app import run_folder
from mrcnn_lightning.app.cli import app


def show(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["runs", *arguments], env={"COLUMNS": "60"})


def leave(folder: Path, config: dict[str, Any], choices: dict[str, str], **record: Any) -> None:
    """What a run leaves of itself."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"host": os.uname().nodename} | record))
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    hydras = {"hydra": {"runtime": {"choices": choices}}}
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydras))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three runs: two of a sweep, one with another backbone."""
    common = {"seed": 0, "model": {"backbone": "${backbone}"}, "launcher": {"n_jobs": 2}}
    for number, (lr, ap) in {2: (0.1, 0.4), 10: (0.2, 0.5)}.items():
        leave(
            tmp_path / "sweep" / str(number),
            common | {"optimizer": {"lr": lr}, "backbone": {"depth": 50}, "run_dir": str(number)},
            {"backbone": "resnet50", "hydra/launcher": "local"},
            status="finished",
            ap=ap - 0.1,
            best_ap=ap,
            steps=90,
            seconds=12.4,
            environment={"commit": f"c{number}", "versions": {"torch": "2.14"}},
        )
    leave(
        tmp_path / "other",
        common | {"optimizer": {"lr": 0.1}, "backbone": {"depth": 18, "width": 8}},
        {"backbone": "resnet18"},
        status="failed",
        error="no such file",
    )
    return tmp_path


def rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line.strip()]


def test_a_table_shows_what_differs(folder: Path, tmp_path: Path) -> None:
    shown = show(str(folder))
    assert shown.exit_code == 0
    table = rows(shown.output)
    assert table[0] == ["run", "status", "ap", "steps", "seconds", "backbone", "optimizer.lr"]
    assert table[2] == ["other", "failed", "resnet18", "0.1"]
    assert table[3] == ["sweep/2", "finished", "0.4000", "90", "12", "resnet50", "0.1"]
    assert table[4] == ["sweep/10", "finished", "0.5000", "90", "12", "resnet50", "0.2"]
    file = tmp_path / "all.csv"
    assert (
        rows(show(str(folder / "sweep"), "--sort", "ap", "--csv", str(file)).output)[2][0] == "10"
    )
    with file.open() as opened:
        assert [row["optimizer.lr"] for row in csv.DictReader(opened)] == ["0.2", "0.1"]


def test_a_run_that_died_and_one_that_lives(tmp_path: Path) -> None:
    leave(tmp_path / "died", {}, {}, status="running")
    leave(tmp_path / "lives", {}, {}, status="running")
    leave(tmp_path / "elsewhere", {}, {}, status="running", host="another machine")
    (tmp_path / "died" / ".lock").touch()
    started = tmp_path / "started"
    other = os.fork()
    if other == 0:
        run_folder._hold(tmp_path / "lives", "run_dir")
        started.touch()
        time.sleep(60)
        os._exit(0)
    while not started.exists():
        time.sleep(0.01)
    statuses = {row[0]: row[1] for row in rows(show(str(tmp_path)).output)[2:]}
    os.kill(other, 9)
    os.waitpid(other, 0)
    assert statuses == {"died": "died", "lives": "running", "elsewhere": "running"}


def test_two_runs_side_by_side(folder: Path) -> None:
    shown = show("diff", str(folder / "sweep" / "2"), str(folder / "sweep" / "10"))
    assert shown.exit_code == 0
    found = {row[0]: row[1:] for row in rows(shown.output)}
    assert found["optimizer.lr"] == ["0.1", "0.2"] and found["commit"] == ["c2", "c10"]
    assert found["best_ap"] == ["0.4", "0.5"]
    assert "steps" not in found and "versions.torch" not in found and "seed" not in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "error: no such folder: nowhere"),
        (["{}", "--sort", "x"], "error: --sort x is no column: there are run, status, ap"),
        (["diff", "{}"], "error: mrcnn runs diff takes two folders"),
        (["diff", "{}", "{}"], "is no run's folder: it has no run.json"),
        (["{}", "a"], "error: one folder is enough"),
        (["{}/sweep/2/.hydra"], "error: there are no runs in"),
    ],
)
def test_what_is_no_run_is_one_sentence(folder: Path, words: list[str], message: str) -> None:
    shown = show(*(word.format(folder) for word in words))
    assert shown.exit_code == 1 and message in shown.stderr and shown.stderr.count("\n") == 1
