"""`mrcnn data check` as it is called."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from mrcnn_lightning.app.cli import app


@pytest.fixture
def call(tmp_path: Path, shapes_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command on a copy of the small set, of which a fault may be made."""
    shutil.copytree(shapes_root / "val", tmp_path / "val")
    file = tmp_path / "set.json"
    shutil.copy(shapes_root / "annotations/instances_val.json", file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*options: str, **changes: Any) -> Any:
        content = json.loads(file.read_text())
        content["annotations"][0] |= changes
        file.write_text(json.dumps(content))
        return CliRunner().invoke(app, ["data", "check", "set.json", "val", *options])

    return run


def test_a_set_without_errors_ends_with_0(call: Callable[..., Any]) -> None:
    result = call()
    assert result.exit_code == 0, result.output
    assert "set.json: 10 images, " in result.output and ", 3 classes\n" in result.output
    assert "error" not in result.output


def test_errors_are_said_with_their_place_and_remedy(call: Callable[..., Any]) -> None:
    result = call(id=5555, bbox=[1, 2, 3])
    assert result.exit_code == 1
    assert (
        "error   boxes that are no four finite numbers: 1 (annotation 5555 has [1, 2, 3]); --fix "
        "takes the box from the mask"
    ) in result.output


def test_a_repaired_copy(call: Callable[..., Any], tmp_path: Path) -> None:
    before = (tmp_path / "set.json").stat().st_mtime_ns
    result = call("--fix", "new.json", bbox=[1, 2, 3])
    assert result.exit_code == 0, result.output
    assert "new.json is a repaired copy\n  boxes taken from masks: 1\n" in result.output
    assert len(json.loads((tmp_path / "new.json").read_text())["annotations"][0]["bbox"]) == 4
    again = call("--fix", "set.json")
    assert again.exit_code == 1 and "set.json exists: give" in again.output
    assert (tmp_path / "set.json").stat().st_mtime_ns > before


def test_json_for_machines(call: Callable[..., Any]) -> None:
    result = call("--json", "--fix", "new.json", iscrowd="yes")
    printed = json.loads(result.stdout)
    assert printed["images"] == 10 and printed["classes"] == 3
    fault = next(each for each in printed["faults"] if each["name"] == "crowd")
    assert (fault["severity"], fault["count"]) == ("error", 1)
    assert printed["changes"] == {"iscrowd written as 0 or 1": 1}
    assert all(each["name"] != "crowd" for each in printed["remaining"])


def test_another_split(call: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "val", tmp_path / "other")
    for path in sorted((tmp_path / "other").iterdir())[1:]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        image.resize((96, 96)).save(path)
    result = call("--against", "set.json", "other")
    assert "images of which the other split has a copy: 1 (" in result.output
    assert "images that look like one of the other split: 9 (" in result.output


def test_a_file_that_is_not_there(call: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "set.json").rename(tmp_path / "gone.json")
    result = CliRunner().invoke(app, ["data", "check", "set.json", "val"])
    assert result.exit_code == 1
    assert result.output == "error: set.json is no file: give the annotations in COCO's format\n"
