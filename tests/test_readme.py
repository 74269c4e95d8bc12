"""Every command of the README and of docs/ composes or runs, and every metric there exists."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import hydra
import pytest
import typer.main
from omegaconf import OmegaConf

from mrcnn_lightning.app.cli import app
from mrcnn_lightning.app.run import CONF
from mrcnn_lightning.evaluation.scoring import NUMBERS
from tests.conftest import ROOT, compose

TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs" / "extending.md")  # whose parts are not there yet: test_docs.py
ALL_TEXT = "\n".join(page.read_text() for page in PAGES)
COMMANDS = [
    command.strip()
    for block in re.findall(r"```bash\n(.*?)```", ALL_TEXT, re.DOTALL)
    for line in block.splitlines()
    for command in line.split("&&")
]


def test_no_figure_is_missing() -> None:
    for file in (ROOT / "README.md", *(CONF / "experiment").glob("*.yaml")):
        assert not re.search(
            r"(BOX|MASK|TIME)_[A-Z]+|\.\.\. minutes|AP \.\.\.", file.read_text()
        ), file


def test_the_two_commands_are_the_ones_promised() -> None:
    assert "pip install -e . && python train.py experiment=shapes" in TEXT
    assert 'pip install -e ".[dev]" && pytest' in TEXT


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_commands(command: str) -> None:
    words = shlex.split(command)
    if words[:2] in (["python", "train.py"], ["mrcnn", "train"]):
        overrides = [word for word in words[2:] if word not in ("-m", "--cfg", "job")]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            for single in _single_values(overrides):
                cfg = hydra.compose("train", [*single, "run_dir=x"])
                OmegaConf.to_container(cfg, resolve=True)
    elif words[0] == "mrcnn":
        group = typer.main.get_command(app)
        assert isinstance(group, click.Group) or hasattr(group, "commands")
        name, arguments = words[1], words[2:]
        while hasattr(group.commands[name], "commands"):  # mrcnn data
            group, name, arguments = group.commands[name], arguments[0], arguments[1:]
        group.commands[name].make_context(name, arguments, resilient_parsing=False)
    elif words[0] == "pip":
        project = (ROOT / "pyproject.toml").read_text()
        for extra in re.findall(r"\[(\w+)\]", command):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
    else:
        assert command in (
            "pytest",
            "pre-commit install",
            "python3 -m venv .venv",
            ". .venv/bin/activate",
            "tensorboard --logdir runs",
            "mlflow ui --backend-store-uri sqlite:///runs/mlflow/mlflow.db",
        )


def _single_values(overrides: list[str]) -> list[list[str]]:
    """The jobs of a sweep, the first value of each swept key alone."""
    first = [re.sub(r"=.*interval\(([^,]+),.*", r"=\1", override) for override in overrides]
    return [[re.sub(r"^([\w.]+=)([^\[,]+),.*", r"\1\2", override) for override in first]]


@pytest.mark.parametrize("page", ["README.md", "docs/prediction.md"])
def test_python_runs(
    page: str,
    checkpoint: Path,
    shapes_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name, source in (
        ("runs/shapes/RUN/checkpoints/best.ckpt", checkpoint),
        ("photos/one.jpg", shapes_root / "val" / "000001.png"),
        ("photos/two.jpg", shapes_root / "val" / "000002.png"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(source)
    exec(code, {})
    assert list(tmp_path.rglob("*found.png"))


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells one after the other, made smaller."""
    notebook = json.loads((ROOT / "examples" / "shapes.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells[0] == "epochs, num_train = 2, 60"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    namespace: dict[str, Any] = {}
    for cell in ["epochs, num_train = 1, 12", *cells[1:]]:
        exec(cell, namespace)
    assert namespace["done"].returncode == 0 and len(namespace["found"]) == 2


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_named_options_and_metrics_exist() -> None:
    for number in NUMBERS:
        assert f"{number}" in ALL_TEXT
    groups = ["data/windows=grid", "data/sampling=repeat_factor"]
    cfg = compose("logger=wandb", "hparams_search=optuna", *groups)
    for key in re.findall(
        r"`((?:data|trainer|backbone|callbacks|logger|model|optimizer)\.[\w.]+)`", ALL_TEXT
    ):
        place, _, last = key.rpartition(".")
        assert last in OmegaConf.select(cfg, place) or key == "data.yaml", key  # YOLO's file
    published = re.findall(r"\| `(\w+)` \| (?:COCO|generated|balloon)", TEXT)
    assert set(published) == {file.stem for file in (CONF / "experiment").glob("*.yaml")}
