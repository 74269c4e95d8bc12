import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from typer.testing import CliRunner

from mrcnn_lightning.cli import app


@pytest.fixture
def photos(shapes_root: Path, tmp_path: Path) -> Path:
    """A folder with all that people have in folders."""
    folder = tmp_path / "photos"
    folder.mkdir()
    source = Image.open(shapes_root / "val" / "000001.png")
    source.save(folder / "good.jpg")
    source.convert("L").save(folder / "grey.png")
    source.convert("RGBA").save(folder / "rgba.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    source.rotate(90, expand=True).save(folder / "rotated.jpg", exif=exif)
    whole = (folder / "good.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_predict_does_the_good_ones_and_names_the_bad(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["predict", str(checkpoint), str(photos), "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--min-score", "0.1"])
    assert result.exit_code == 1
    assert "4 images done" in result.stdout
    assert "2 of 6 files could not be read" in result.stderr
    assert "truncated.jpg" in result.stderr and "notes.txt" in result.stderr
    names = {"good.jpg.png", "grey.png.png", "rgba.png.png", "rotated.jpg.png", "predictions.json"}
    assert {path.name for path in out.iterdir()} == names

    upright, turned = (Image.open(out / f"{name}.jpg.png") for name in ("good", "rotated"))
    assert turned.size == upright.size
    difference = np.asarray(turned, dtype=float) - np.asarray(upright, dtype=float)
    assert np.abs(difference).mean() < 25  # one picture, stored on its side and upright

    results = json.loads((out / "predictions.json").read_text())
    assert results and {
        "image_id",
        "file_name",
        "category_id",
        "bbox",
        "score",
        "segmentation",
    } == set(results[0])
    for entry in results:
        width, height = Image.open(out / f"{Path(entry['file_name']).name}.png").size
        assert entry["segmentation"]["size"] == [height, width]
        assert pycocotools.mask.decode(entry["segmentation"]).shape == (height, width)


def test_predict_of_good_photos_ends_well(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    shutil.copy(photos / "good.jpg", twin / "good.jpg")
    files = [str(photos / "good.jpg"), str(twin / "good.jpg"), str(photos / "grey.png")]
    result = CliRunner().invoke(
        app, ["predict", str(checkpoint), *files, "--out", str(tmp_path / "out"), "--device", "cpu"]
    )
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "good.jpg.png",
        "2_good.jpg.png",
        "grey.png.png",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.ckpt", "."], "no such file: nowhere.ckpt"),
        (["nowhere.ckpt", "nothing.jpg"], "no such file or folder: nothing.jpg"),
    ],
)
def test_predict_without_its_files(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["predict", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and message in result.stderr


def test_predict_on_a_device_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(checkpoint), str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--device", "gpu"])
    assert result.exit_code == 1 and "error: device=gpu cannot be used" in result.stderr
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "file")])
    assert result.exit_code == 2 and "Invalid value for '--out'" in result.stderr


def test_download_without_a_network_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(_: Path) -> None:
        raise ValueError("cannot download http://...")

    monkeypatch.setattr("mrcnn_lightning.cli.download", no_network)
    result = CliRunner().invoke(app, ["download-coco", str(tmp_path)])
    assert result.exit_code == 1 and result.stderr.startswith("error: cannot download")


def test_mrcnn_train_is_train_py_on_two_processes_too(
    tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Lightning starts the second process itself, from the first one's command line."""
    mrcnn = Path(sys.executable).parent / "mrcnn"
    devices = ("trainer.accelerator=cpu", "trainer.devices=2")
    overrides = tiny("trainer.max_steps=2", *devices, f"hydra.run.dir={tmp_path}/run")
    process = subprocess.run(
        [str(mrcnn), "train", *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "cache"}
    shown = subprocess.run(
        [str(mrcnn), "train", "backbone=resnet101", "--cfg", "job"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "depth: 101" in shown.stdout
