"""The documentation: its changes apply, its commands compose, its links lead somewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))


def test_each_change_is_all_that_it_takes(shapes_root: Path, tmp_path: Path) -> None:
    """The backbone, head, loss, callback and data set of extending.md, in one run."""
    text = (ROOT / "docs" / "extending.md").read_text()
    for folder in ("mrcnn_lightning", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "train.py", tmp_path)
    changes = re.findall(r"```diff\n(.*?)```", text, re.DOTALL)
    for change in changes:
        subprocess.run(["git", "apply", "-"], input=change, text=True, cwd=tmp_path, check=True)
    words = [
        word
        for command in re.findall(r"```bash\npython train.py (.*?)\n```", text)
        for word in command.split()
    ]
    assert len(changes) == 5 and len(words) == 6
    tiny = {
        "data_root": shapes_root,
        "data.cache_dir": tmp_path / "cache",
        "data.resize.min_size": 64,
        "data.resize.max_size": 64,
        "data.num_workers": 0,
        "data.skip_empty": "false",
        "backbone.weights": "null",
        "model.neck.out_channels": 16,
        "model.box_head.trunk.hidden": 32,
        "trainer.max_steps": 100,
        "callbacks.pictures": "null",
        "callbacks.good_enough.ap": -1,
        "hydra.run.dir": tmp_path / "run",
    }
    program = (
        "import mrcnn_lightning.app.run as run; run.main();"
        "from mrcnn_lightning.checkpoint import load_checkpoint;"
        f"model = load_checkpoint('{tmp_path}/run/checkpoints/last.ckpt').model;"
        "print(type(model.box_head.branch.trunk), type(model.box_head.branch.box_loss))"
    )
    options = [f"{key}={value}" for key, value in tiny.items()]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "DropoutFC" in done.stdout and "DIoULoss" in done.stdout
    rows = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()[1:]
    assert {row.partition(",")[0] for row in rows} == {"0"}  # ended by the callback
    # And they are written as the rest of the project is.
    files = [tmp_path / name for name in re.findall(r"\+\+\+ b/(.*\.py)", text)]
    for check in (["format", "--check"], ["check"]):
        command = ["ruff", *check, "--config", str(ROOT / "pyproject.toml"), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.stem)
def test_links_lead_somewhere(file: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", file.read_text()):
        assert (file.parent / link).exists(), link


def test_the_site_lists_every_page() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    assert set(re.findall(r": (\w+\.md)", site)) == {file.name for file in DOCS}
