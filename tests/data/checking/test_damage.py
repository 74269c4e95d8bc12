"""Damage done to a real set is named, and mended so that a training takes the copy."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrcnn_lightning.data.checking.check import check
from mrcnn_lightning.data.checking.repair import repair
from mrcnn_lightning.data.datamodule import COCODataModule
from mrcnn_lightning.data.sizing import PadToMultiple, Resize, shorter_side
from tests.conftest import shared
from tests.data.checking.damages import DAMAGES, Damage, write_set

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
        prepare=None,
        batch_size=2,
        eval_batch_size=2,
        resize=Resize(rule=shorter_side, min_size=64, max_size=96),
        canvas=PadToMultiple(multiple=32),
        train_transforms=[],
        mini_mask_size=28,
        skip_empty=False,
        max_objects=None,
        boxes_from="file",
        damaged_images="stop",
        num_workers=0,
        cache_dir=str(cache),
        with_masks=with_masks,
        seed=0,
    )


def test_nothing_is_wrong_with_what_is_right(right: tuple[dict[str, Any], Path]) -> None:
    folder = right[1]
    (folder.parent / "set.json").write_text(json.dumps(right[0]))
    found = check(folder.parent / "set.json", folder).found()
    assert {fault.name for fault in found} <= {"class-rare", "polygon-crosses"}


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
    boxes = repaired_boxes(dict(reversed(DAMAGES))["image-size-differs"], damaged)
    assert boxes
