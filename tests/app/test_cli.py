import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from mrcnn_lightning import __version__
from mrcnn_lightning.app.cli import app
from mrcnn_lightning.inference import findings
from mrcnn_lightning.inference.findings import find_photos, make_folder
from mrcnn_lightning.user_error import UserError


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
    (folder / ".DS_Store").write_bytes(b"Bud1")
    return folder


def test_predict_does_the_good_ones_and_names_the_bad(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["predict", str(checkpoint), str(photos), "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--min-score", "0.1"])
    assert result.exit_code == 1
    assert "4 images done" in result.stdout
    assert "1 of 5 files could not be read" in result.stderr and "truncated.jpg" in result.stderr
    assert "2 files in folders are no images by their names" in result.stdout
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
        rows, columns = entry["segmentation"]["size"]
        assert max(width, height) >= 512 and width * rows == height * columns
        assert pycocotools.mask.decode(entry["segmentation"]).shape == (rows, columns)


def test_predict_of_good_photos_ends_well(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    shutil.copy(photos / "good.jpg", twin / "good.jpg")
    files = [str(photos / "good.jpg"), str(twin / "good.jpg"), str(photos / "grey.png")]
    command = ["predict", str(checkpoint), *files, "--device", "cpu", "--out"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "out")])
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "good.jpg.png",
        "2_good.jpg.png",
        "grey.png.png",
    }
    result = CliRunner().invoke(app, [*command, str(tmp_path / "bare"), "--no-pictures"])
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["predictions.json"]
    results = [(tmp_path / name / "predictions.json").read_text() for name in ("out", "bare")]
    assert results[0] == results[1]


@pytest.mark.parametrize("problem", ["full disk", "ctrl-c"])
def test_what_was_found_is_kept_when_the_rest_fails(
    checkpoint: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    problem: str,
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt if problem == "ctrl-c" else OSError(28, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", fail)
    command = ["predict", str(checkpoint), str(photos / "good.jpg"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    start = {"full disk": "[Errno 28] No space left on device", "ctrl-c": "interrupted"}[problem]
    assert result.exit_code == {"full disk": 1, "ctrl-c": 130}[problem]
    assert result.stderr.startswith(f"error: {start}: 1 images done, ")
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())


def test_photos_in_folders(photos: Path, tmp_path: Path) -> None:
    (photos / "more").mkdir()
    shutil.copy(photos / "good.jpg", photos / "more" / "GOOD.JPG")
    names = ["good.jpg", "grey.png", "rgba.png", "rotated.jpg", "truncated.jpg"]
    found, num_skipped = find_photos([photos], recursive=False)
    assert [file.name for file in found] == names and num_skipped == 2
    found, num_skipped = find_photos([photos], recursive=True)
    assert [file.name for file in found] == [*names[:2], "GOOD.JPG", *names[2:]]
    assert findings._picture_names(found)[2] == "3_GOOD.JPG.png"
    assert find_photos([photos / "notes.txt"], recursive=False) == ([photos / "notes.txt"], 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image in .*empty \(0 other files\); --recursive"):
        find_photos([tmp_path / "empty"], recursive=False)


def test_names_of_pictures_never_meet() -> None:
    photos = [Path(name) for name in ("a/x.jpg", "b/x.jpg", "2_x.jpg", "X.jpg", "y" * 252)]
    names = findings._picture_names(photos)
    assert names == ["x.jpg.png", "2_x.jpg.png", "3_2_x.jpg.png", "4_X.jpg.png", "5.png"]


def test_results_go_to_a_folder_without_photos(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, tmp_path / "link", tmp_path):
        with pytest.raises(ValueError, match=r"--out .* holds .*jpg, which is to be looked at"):
            make_folder(out, [photos / "good.jpg"])
    make_folder(photos / "found", [photos / "good.jpg"])
    with pytest.raises(ValueError, match=r"--out .* cannot be made: .*Not a directory"):
        make_folder(photos / "notes.txt" / "found" / "out", [])


def test_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"mrcnn_lightning {__version__}\n"
    assert __version__[0].isdigit()
    monkeypatch.setattr(sys, "argv", ["mrcnn_lightning", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("mrcnn_lightning", run_name="__main__")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.ckpt", __file__], "no such file: nowhere.ckpt"),
        (["nowhere.ckpt", "nothing.jpg"], "no such file or folder: nothing.jpg"),
        (["nowhere.ckpt", ".", "--min-score", "7"], "--min-score 7.0 is not between 0 and 1"),
        (["nowhere.ckpt", ".", "--min-score", "nan"], "--min-score nan is not between 0 and 1"),
    ],
)
def test_predict_without_its_files(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["predict", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and message in result.stderr


def test_predict_on_a_device_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["predict", str(checkpoint), __file__, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--device", "gpu"])
    assert result.exit_code == 1 and "error: device=gpu cannot be used" in result.stderr
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "file")])
    assert result.exit_code == 2 and "Invalid value for '--out'" in result.stderr


def info(*words: str) -> Result:
    return CliRunner().invoke(app, ["info", *words], env={"COLUMNS": "120"})


def test_info_of_a_checkpoint(checkpoint: Path) -> None:
    result = info(str(checkpoint))
    assert result.exit_code == 0, result.stderr
    assert "resnet, depth 18, width 16, groups 1, norm bn" in result.stdout
    assert "input: 64 x 64" in result.stdout
    assert "classes: 3: disc, box, triangle" in result.stdout
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    total = sum(value.numel() for key, value in state.items() if not key.endswith(statistics))
    assert f"{total:,}" in result.stdout


def test_info_of_an_experiment() -> None:
    result = info("shapes")
    assert result.exit_code == 0, result.stderr
    assert "width 24" in result.stdout and "classes: 80\n" in result.stdout
    assert info("experiment=shapes").stdout == result.stdout
    changed = info("shapes", "backbone.width=8", "~callbacks.early_stopping", "--classes", "3")
    assert changed.exit_code == 0, changed.stderr
    assert "width 8" in changed.stdout and "classes: 3\n" in changed.stdout
    phases = ",".join(["{trainer.max_epochs:40}"] * 20)  # longer than a file's name may be
    assert info("shapes", f"phases=[{phases}]").stdout == result.stdout


def test_info_of_overrides() -> None:
    small = ("data.resize.min_size=64", "data.resize.max_size=64", "data.canvas.side=64")
    result = info("matterport", "backbone.depth=50", *small)
    assert result.exit_code == 0, result.stderr
    assert "resnet, depth 50" in result.stdout and "CropAndResize 14" in result.stdout
    assert "canvas 64 x 64" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.ckpt"], "nowhere.ckpt is no file, no experiment (balloon, "),
        (["experiment=nope"], "Could not find 'experiment/nope'; there are balloon, "),
        (["backbone=nope"], "Could not find 'backbone/nope'; there are convnext_base, "),
        (["backbone.nope=3"], "backbone.nope is no key: there are pixels, depth, "),
        (["~nope"], "'nope' does not exist"),
        (["backbone.depth=[1"], "no viable alternative at input '[1'"),
        (["model=mask_rcnn,matterport"], "Ambiguous value for argument"),
        (["backbone.depth=17"], "backbone.depth=17 is not one of [18, "),
        (["shapes", "model.rpn.anchors.sizes=[[32]]"], "has 1 levels, but the neck gives 5"),
        (["shapes", "~model.rpn.num_convs"], "model.rpn: RPN.__init__() missing 1 required"),
        (["shapes", "data.resize.min_size=${nope}"], "Interpolation key 'nope' not found"),
        (["model/box_head=roi_pool"], "has no such key, set the values that refer to it"),
        (["model=mask_rcnn_d2_c4", "backbone=swin_t"], "has no such stage: give one that has"),
        (["matterport", "data.canvas.side=64"], "data.canvas.side=64 has no room"),
    ],
)
def test_info_of_what_is_not_there(words: list[str], message: str) -> None:
    result = info(*words)
    assert result.exit_code == 1 and not result.stdout
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_info_of_a_file_that_is_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    (tmp_path / "damaged.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    for words, message in (
        ([str(tmp_path / "damaged.ckpt")], "damaged.ckpt is damaged"),
        ([str(tmp_path / "other.ckpt")], "is no checkpoint of this project"),
        ([str(checkpoint), "backbone.depth=50"], "is a checkpoint, which says all"),
    ):
        result = info(*words)
        assert result.exit_code == 1 and message in result.stderr
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_download_without_a_network_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(_: Path) -> None:
        raise UserError("cannot download http://...")

    monkeypatch.setattr("mrcnn_lightning.app.cli.download", no_network)
    result = CliRunner().invoke(app, ["download-coco", str(tmp_path)])
    assert result.exit_code == 1 and result.stderr.startswith("error: cannot download")


def test_mrcnn_train_shows_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mrcnn"])  # which the command changes
    result = CliRunner().invoke(app, ["train", "backbone=resnet101", "--cfg", "job"])
    assert "depth: 101" in result.stdout
