import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mrcnn_lightning.data.shapes import generate_shapes

SETTINGS: dict[str, Any] = {
    "num_train": 60,
    "num_val": 5,
    "image_size": 64,
    "max_objects": 5,
    "seed": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "shapes"
    generate_shapes(root=str(folder), **SETTINGS)
    return folder


def test_everything_is_in_it(root: Path) -> None:
    truth = COCO(str(root / "annotations" / "instances_train.json"))
    annotations = list(truth.anns.values())
    assert {category["name"] for category in truth.cats.values()} == {"disc", "box", "triangle"}
    assert {entry["category_id"] for entry in annotations} == {3, 7, 12}
    kinds = {
        "polygon"
        if isinstance(entry["segmentation"], list)
        else type(entry["segmentation"]["counts"])
        for entry in annotations
    }
    assert kinds == {"polygon", str, list}
    assert any(entry["iscrowd"] for entry in annotations)
    assert any(not truth.imgToAnns[image] for image in truth.getImgIds())
    areas = [entry["area"] for entry in annotations]
    assert max(areas) > 10 * min(areas)


def test_masks_are_what_is_drawn(root: Path) -> None:
    truth = COCO(str(root / "annotations" / "instances_train.json"))
    for image_id, image in truth.imgs.items():
        pixels = np.asarray(Image.open(root / "train" / image["file_name"]))
        assert pixels.shape == (64, 64, 3)
        covered = np.zeros((64, 64), dtype=int)
        for entry in truth.imgToAnns[image_id]:
            mask = truth.annToMask(entry)
            covered += mask
            assert mask.sum() == entry["area"] > 0
            x, y, width, height = entry["bbox"]
            rows, columns = np.nonzero(mask)
            # A pixel is drawn where its centre is covered, so a sharp tip is short of its corner.
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.array(found) - [x, y, x + width, y + height]).max() <= 3
        assert covered.max(initial=0) <= 1  # what is hidden is nobody's


def test_the_same_seed_draws_the_same_set(root: Path, tmp_path: Path) -> None:
    generate_shapes(root=str(tmp_path / "again"), **SETTINGS)
    for file in root.rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(root)).read_bytes()


def test_it_is_drawn_once(root: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    generate_shapes(root=str(root), **SETTINGS)
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before


def test_another_set_in_its_place_is_an_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds .*'num_train': 60.* give another data_root"):
        generate_shapes(root=str(root), **(SETTINGS | {"num_train": 61}))
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="photos holds something else, where shapes"):
        generate_shapes(root=str(tmp_path / "photos"), **SETTINGS)


def test_training_and_validation_are_apart(root: Path) -> None:
    train = json.loads((root / "annotations" / "instances_train.json").read_text())
    val = json.loads((root / "annotations" / "instances_val.json").read_text())
    assert train["annotations"][0] != val["annotations"][0]
    assert (root / "train" / "000001.png").read_bytes() != (
        root / "val" / "000001.png"
    ).read_bytes()
