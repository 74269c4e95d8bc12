"""The yaml for `wandb sweep`, as W&B's own code reads it, and what its agent would start."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner
from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
from wandb.sdk.launch.sweeps import utils

from mrcnn_lightning.app.cli import app


def written(*words: str, file: Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["sweep-config", *words])
    assert done.exit_code == 0, done.output
    file.write_text(done.output)
    config: dict[str, Any] = utils.load_sweep_config(str(file))
    return config


def test_the_agents_command_runs(
    run_main: Callable[..., tuple[int, str]],
    tiny: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = tiny("hparams_search=lr_schedule", "trainer.max_steps=2", "callbacks.pictures=null")
    config = written(*words, f"run_dir={tmp_path}/run", file=tmp_path / "sweep.yaml")
    assert config["method"] == "bayes" and config["run_cap"] == 20
    assert config["metric"] == {"name": "val/ap", "goal": "maximize"}
    parameters = _validate_config_and_fill_distribution(config)["parameters"]
    lr = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}
    assert parameters["optimizer.lr"] == lr
    assert parameters["scheduler"] == {"values": ["cosine", "multistep"]}
    assert parameters["scheduler.warmup"] == {"distribution": "uniform", "min": 0.0, "max": 0.1}

    drawn = {"optimizer.lr": 0.003, "scheduler": "multistep", "scheduler.warmup": 0.05}
    told = {"args": {key: {"value": value} for key, value in drawn.items()}}
    macros: dict[str, Any] = utils.create_sweep_command_args(told) | {
        "env": ["/usr/bin/env"],
        "interpreter": ["python"],
    }
    command: list[str] = []
    for word in utils.create_sweep_command(config["command"]):
        command += macros[word[2:-1]] if word.startswith("${") else [word]
    assert command[:5] == ["/usr/bin/env", "python", "-m", "mrcnn_lightning", "train"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    status, output = run_main(*command[5:])
    assert status == 0, output
    said = (tmp_path / "run" / "config.yaml").read_text()
    assert "lr: 0.003\n" in said and "warmup: 0.05\n" in said and "milestones:" in said
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_ranges_in_wandbs_words(tmp_path: Path) -> None:
    ranges = {
        "seed": "int(interval(2, 8))",
        "trainer.max_epochs": "range(5, 20, 5)",
        "data.batch_size": "int(tag(log, interval(1, 64)))",
        "show_score": "range(0.25, 1.0, 0.25)",
        "backbone": "choice(resnet18, resnet50)",
    }
    words = [f"{key}={text}" for key, text in ranges.items()]
    config = written("hparams_search=optuna", *words, file=tmp_path / "sweep.yaml")
    parameters = config["parameters"]
    assert parameters["seed"] == {"distribution": "int_uniform", "min": 2, "max": 8}
    assert parameters["trainer.max_epochs"] == {"values": [5, 10, 15]}
    integers = parameters["data.batch_size"]["values"]
    assert (integers[0], integers[-1]) == (1, 64)
    assert all(a < b <= 2 * a for a, b in pairwise(integers))
    assert parameters["show_score"]["values"] == [0.25, 0.5, 0.75]
    assert parameters["backbone"] == {"values": ["resnet18", "resnet50"]}
    config = written("hparams_search=lr", file=tmp_path / "sweep.yaml")
    assert config["method"] == "grid" and "run_cap" not in config
    assert config["parameters"] == {"optimizer.lr": {"values": [0.0005, 0.001, 0.002]}}


def test_nothing_to_search_is_one_sentence() -> None:
    done = CliRunner().invoke(app, ["sweep-config", "experiment=shapes"])
    assert done.exit_code == 1 and done.stderr.startswith("error: nothing is to be searched")
