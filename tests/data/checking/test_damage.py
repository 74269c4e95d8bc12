"""Damage done to a real set is named, and mended so that a training takes the copy."""

import copy
import csv
import json
import shutil
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mrcnn_lightning.data.checking.check import Checked, check, compare
from mrcnn_lightning.data.checking.repair import repair
from mrcnn_lightning.data.datamodule import COCODataModule
from mrcnn_lightning.data.sampling import uniform
from mrcnn_lightning.data.sizing import PadToMultiple, Resize, shorter_side
from mrcnn_lightning.user_error import UserError
from tests.conftest import shared
from tests.data.checking.damages import (
    BEYOND_REPAIR,
    DAMAGES,
    Damage,
    all_in_another_folder,
    as_rle,
    corners,
    resized,
    swapped_sides,
    without_sides,
    write_set,
    yolo,
)

CASES = [pytest.param(*case, id=f"{number}-{case[0]}") for number, case in enumerate(DAMAGES)]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("set") / "images"
    return write_set(shared("data/coco_tiny"), 6, folder), folder


@pytest.fixture
def damaged(right: tuple[dict[str, Any], Path], tmp_path: Path) -> Callable[[Damage], Any]:
    def write(change: Damage) -> tuple[Path, Path]:
        content, folder = copy.deepcopy(right[0]), tmp_path / "images"
        shutil.copytree(right[1], folder)
        change(content, folder)
        (tmp_path / "set.json").write_text(json.dumps(content))
        return tmp_path / "set.json", folder

    return write


def data_module(file: Path, folder: Path, cache: Path, *, with_masks: bool) -> COCODataModule:
    return COCODataModule(
        train_images=str(folder),
        train_json=str(file),
        val_images=str(folder),
        val_json=str(file),
        test_images=None,
        test_json=None,
        train_weights=None,
        classes=None,
        prepare=None,
        batch_size=2,
        eval_batch_size=2,
        resize=Resize(rule=shorter_side, min_size=64, max_size=96),
        canvas=PadToMultiple(multiple=32),
        train_transforms=[],
        mini_mask_size=28,
        skip_empty=False,
        max_objects=None,
        limit=None,
        sampling=uniform,
        boxes_from="file",
        copy_paste=0.0,
        damaged_images="stop",
        num_workers=0,
        preview=None,
        cache_dir=str(cache),
        channels=3,
        dtype="uint8",
        windows=None,
        with_masks=with_masks,
        seed=0,
    )


def test_nothing_is_wrong_with_what_is_right(right: tuple[dict[str, Any], Path]) -> None:
    found = {fault.name for fault in check_of(right).found()}
    assert found <= {"class-rare", "polygon-crosses"}


@pytest.mark.parametrize(("kind", "change"), CASES)
def test_damage_is_named_and_mended(
    kind: str, change: Damage, damaged: Callable[[Damage], Any], tmp_path: Path
) -> None:
    file, folder = damaged(change)
    before = file.read_bytes()
    checked = check(file, folder)
    faults = {fault.name: fault for fault in checked.found()}
    assert kind in faults, [fault.sentence() for fault in faults.values()]
    assert "\n" not in faults[kind].sentence()
    repaired = repair(file, folder, tmp_path / "new.json", checked=checked)
    assert file.read_bytes() == before
    left = [fault.sentence() for fault in repaired.checked.found() if fault.severity == "error"]
    if kind == "only-crowds":
        assert len(left) == 1
        return
    assert not left
    if faults[kind].severity == "error":
        assert repaired.changes
    has_masks = "no-masks" not in {fault.name for fault in repaired.checked.found()}
    data = data_module(tmp_path / "new.json", folder, tmp_path, with_masks=has_masks)
    data.setup("fit")
    for batch in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        assert batch.targets is not None and batch.targets.boxes.isfinite().all()


@pytest.mark.parametrize("form", [None, corners, yolo])
@pytest.mark.parametrize("change", [swapped_sides, without_sides])
def test_objects_wait_for_the_size_of_their_image(
    change: Damage,
    form: Damage | None,
    damaged: Callable[[Damage], Any],
    right: tuple[dict[str, Any], Path],
) -> None:
    whole = copy.deepcopy(right[0])
    for each in whole["annotations"][::2]:
        each["segmentation"] = as_rle(whole, each)

    def both(content: dict[str, Any], folder: Path) -> None:
        content |= copy.deepcopy(whole)
        if form is not None:
            form(content, folder)
        change(content, folder)

    file, folder = damaged(both)
    out = file.with_name("new.json")
    repair(file, folder, out, checked=check(file, folder))
    mended = json.loads(out.read_text())
    assert mended["images"] == whole["images"]
    assert len(mended["annotations"]) == len(whole["annotations"])
    for ours, theirs in zip(mended["annotations"], whole["annotations"], strict=True):
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-6)
        assert ours["segmentation"] == theirs["segmentation"]


def test_images_too_large_for_pillow_are_named_and_kept(
    damaged: Callable[[Damage], Any],
    right: tuple[dict[str, Any], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def enlarge(content: dict[str, Any], folder: Path) -> None:
        image = content["images"][0]
        path = folder / image["file_name"]
        with Image.open(path) as file:
            file.resize((400, 300)).save(path)
        image["width"], image["height"] = 400, 300

    file, folder = damaged(enlarge)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    checked = check(file, folder)
    found = {fault.name for fault in checked.found()}
    assert "image-too-large" in found and "image-broken" not in found
    repaired = repair(file, folder, file.with_name("new.json"), checked=checked)
    assert repaired.checked.numbers() == check_of(right).numbers()


def repaired_boxes(change: Damage, damaged: Callable[[Damage], Any]) -> dict[int, list[float]]:
    file, folder = damaged(change)
    out = file.with_name("new.json")
    repair(file, folder, out, checked=check(file, folder))
    return {each["id"]: each["bbox"] for each in json.loads(out.read_text())["annotations"]}


@pytest.mark.parametrize(
    ("name", "change"), [case for case in DAMAGES if case[0].startswith("boxes-")]
)
def test_boxes_of_another_format_become_what_they_were(
    name: str, change: Damage, damaged: Callable[[Damage], Any], right: tuple[dict[str, Any], Path]
) -> None:
    boxes = repaired_boxes(change, damaged)
    for annotation in right[0]["annotations"]:
        assert boxes[annotation["id"]] == pytest.approx(annotation["bbox"], abs=1e-6)


def test_objects_follow_their_resized_image(
    damaged: Callable[[Damage], Any], right: tuple[dict[str, Any], Path]
) -> None:
    boxes = repaired_boxes(resized, damaged)
    image = right[0]["images"][0]
    scales = [-(-image[side] // 2) / image[side] for side in ("width", "height")] * 2
    of_image = [each for each in right[0]["annotations"] if each["image_id"] == image["id"]]
    assert len(of_image) > 1
    for annotation in of_image:
        expected = [value * scale for value, scale in zip(annotation["bbox"], scales, strict=True)]
        assert boxes[annotation["id"]] == pytest.approx(expected)


def test_names_of_another_folder_are_found_by_their_last_part(
    damaged: Callable[[Damage], Any], right: tuple[dict[str, Any], Path]
) -> None:
    file, folder = damaged(all_in_another_folder)
    repaired = repair(file, folder, file.with_name("new.json"), checked=check(file, folder))
    assert repaired.changes == {"names of files corrected": 6}
    assert repaired.checked.numbers() == check_of(right).numbers()


def check_of(right: tuple[dict[str, Any], Path]) -> Checked:
    file = right[1].parent / "set.json"
    file.write_text(json.dumps(right[0]))
    return check(file, right[1])


@pytest.mark.parametrize(("kind", "change"), BEYOND_REPAIR)
def test_what_has_no_repair_is_one_sentence(
    kind: str, change: Callable[[str], str], damaged: Callable[[Damage], Any]
) -> None:
    file, folder = damaged(lambda content, folder: None)
    file.write_text(change(file.read_text()))
    checked = check(file, folder)
    fault = checked.found()[0]
    assert (fault.name, fault.severity) == (kind, "error")
    assert "\n" not in fault.sentence()
    if kind == "not-coco":
        with pytest.raises(UserError, match=r"set.json cannot be repaired: no COCO-format file"):
            repair(file, folder, file.with_name("new.json"), checked=checked)
    assert not file.with_name("new.json").exists()


def test_no_file_is_overwritten(right: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    file = right[1].parent / "set.json"
    with pytest.raises(UserError, match=r"set.json exists: give the repaired copy another name"):
        repair(file, right[1], file, checked=check_of(right))


def test_copies_in_another_split(
    damaged: Callable[[Damage], Any], right: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    def another_split(content: dict[str, Any], folder: Path) -> None:
        content["images"][0]["file_name"] = "renamed.jpg"
        shutil.copy(folder / right[0]["images"][0]["file_name"], folder / "renamed.jpg")
        del content["images"][1:]
        content["categories"][0]["name"] = "other"

    checked = check_of(right)
    compare(checked, check(*damaged(another_split)))
    faults = {fault.name: fault for fault in checked.found()}
    assert faults["copies-across"].count == 1
    assert faults["copies-across"].places[0].endswith(" is renamed.jpg")
    assert faults["other-classes"].count == 2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "change"), CASES)
def test_a_repaired_set_trains(
    kind: str,
    change: Damage,
    damaged: Callable[[Damage], Any],
    run_main: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    """Twenty steps of a small model with finite losses, or one sentence why not."""
    file, folder = damaged(change)
    repaired = repair(file, folder, tmp_path / "new.json", checked=check(file, folder))
    left = {fault.name for fault in repaired.checked.found()}
    status, output = run_main(
        "data=custom",
        f"data.train_images={folder}",
        f"data.train_json={tmp_path}/new.json",
        f"data.val_images={folder}",
        f"data.val_json={tmp_path}/new.json",
        f"data.cache_dir={tmp_path}/cache",
        "data.num_workers=0",
        "data.batch_size=2",
        "data.resize.min_size=64",
        "data.resize.max_size=96",
        "data.train_transforms.0.min_size=[64]",
        "model=faster_rcnn" if "no-masks" in left else "model=mask_rcnn_slim",
        "backbone=resnet18_slim",
        "backbone.weights=null",
        "backbone.width=8",
        "optimizer.lr=0.001",
        "trainer.max_epochs=-1",
        "trainer.max_steps=20",
        "trainer.limit_val_batches=0",
        "trainer.num_sanity_val_steps=0",
        "trainer.log_every_n_steps=1",
        "callbacks=none",
        f"run_dir={tmp_path}/run",
    )
    assert status == 0, output[-2000:]
    with (tmp_path / "run/csv/metrics.csv").open() as metrics:
        losses = [row["train/loss"] for row in csv.DictReader(metrics) if row.get("train/loss")]
    assert len(losses) == 20 and all(map(isfinite, map(float, losses)))
