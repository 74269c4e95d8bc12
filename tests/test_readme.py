"""Every command of the README composes or runs, and every metric in it exists."""

import re
import shlex
from pathlib import Path

import click
import hydra
import pytest
import typer.main
from omegaconf import OmegaConf

from mrcnn_lightning.app.cli import app
from mrcnn_lightning.app.run import CONF
from mrcnn_lightning.evaluation.coco import NUMBERS
from tests.conftest import ROOT, compose

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    command.strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
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


@pytest.mark.parametrize("command", COMMANDS)
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
        group.commands[name].make_context(name, arguments, resilient_parsing=False)
    elif words[0] == "pip":
        project = (ROOT / "pyproject.toml").read_text()
        for extra in re.findall(r"\[(\w+)\]", command):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
    else:
        assert words == ["pytest"]


def _single_values(overrides: list[str]) -> list[list[str]]:
    """The jobs of a sweep, the first value of each swept key alone."""
    return [[re.sub(r"^([\w.]+=)([^\[,]+),.*", r"\1\2", override) for override in overrides]]


def test_the_python_of_the_readme_runs(
    checkpoint: Path, shapes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name, source in (
        ("runs/shapes/RUN/checkpoints/best.ckpt", checkpoint),
        ("photos/one.jpg", shapes_root / "val" / "000001.png"),
        ("photos/two.jpg", shapes_root / "val" / "000002.png"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(source)
    namespace: dict[str, list[object]] = {}
    exec(code, namespace)
    assert len(namespace["results"]) == 2


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_named_options_and_metrics_exist() -> None:
    for number in NUMBERS:
        assert f"{number}" in TEXT
    cfg = compose("logger=[csv,wandb]")
    for key in re.findall(
        r"`((?:data|trainer|backbone|callbacks|logger|model|optimizer)\.[\w.]+)`", TEXT
    ):
        assert OmegaConf.select(cfg, key, throw_on_missing=True) is not None or key in (
            "backbone.weights",
        ), key
    published = re.findall(r"\| `(\w+)` \| (?:COCO|generated|balloon)", TEXT)
    assert set(published) == {file.stem for file in (CONF / "experiment").glob("*.yaml")}
