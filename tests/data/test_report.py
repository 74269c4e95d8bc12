"""What a start says of an annotation file."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.report import contents, oddities
from tests.data.test_annotations import SQUARE, annotation, content
from tests.data.test_datamodule import build

Load = Callable[[Any], Annotations]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(value: Any) -> Annotations:
        (tmp_path / "file.json").write_text(json.dumps(value))
        return Annotations.load(tmp_path / "file.json", cache_dir=tmp_path / "cache")

    return write_and_load


def test_what_is_in_a_file(load: Load) -> None:
    value = content()
    value["annotations"][3]["bbox"] = [1, 1, 6, 4]
    packed = load(value)
    assert list(contents(packed)) == [
        "3 images (1 without objects), 3 objects and 1 crowds; 0 boxes leave their image",
        "objects a class: dog 2, cat 1",
    ]
    assert list(oddities(packed, is_evaluated=True)) == []


def test_only_the_ends_of_many_classes(load: Load) -> None:
    value = content()
    value["categories"] += [{"id": 100 + k, "name": f"c{k}"} for k in range(30)]
    _, classes = contents(load(value))
    assert classes.startswith("objects a class: dog 2, cat 1, c0 0, ")
    assert ", ..., c20 0, " in classes and classes.endswith("c29 0")


def test_what_is_odd(load: Load) -> None:
    value = content()
    value["annotations"] = [
        annotation(0, 7, 2, SQUARE, area=0),
        annotation(1, 7, 2, SQUARE, bbox=[1, 1, 0, 4]),
        annotation(2, 7, 2, SQUARE, bbox=[1, 1, 0, 4]),
        annotation(3, 7, 2, [[1, 1, 2, 2]]),
        annotation(4, 7, 2, SQUARE, bbox=[3, 12, 9, 18]),
        annotation(5, 7, 2, SQUARE, bbox=[8, 2, 10, 6]),
    ]
    packed = load(value)
    counts, _ = contents(packed)
    assert counts.endswith("3 objects and 0 crowds; 2 boxes leave their image")
    left_out, corners, areas, id_0 = oddities(packed, is_evaluated=True)
    assert left_out == (
        "left out of training and of evaluation (pycocotools would count them): "
        "2 boxes without area, 1 polygons of fewer than three points"
    )
    assert corners.startswith("most boxes (2 of 3) leave their image, as x1, y1, x2, y2 would")
    assert areas.startswith("1 objects have an area that is no positive number: it is measured")
    assert id_0.startswith("an annotation has the id 0, which pycocotools takes for 'no match'")
    assert len(list(oddities(packed, is_evaluated=False))) == 3


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        ([[1, 1, 4, 4]] * 3, "2 objects are there twice (image, class and box): mrcnn data check"),
        ([[0.1, 0.1, 0.4, 0.5]] * 2, "boxes look like parts of the image from 0 to 1"),
        ([[6, 12, 8, 12], [5, 10, 9, 20]], "most boxes (2 of 2) leave their image, as a centre"),
    ],
)
def test_what_is_odd_about_boxes(load: Load, boxes: list[list[float]], sentence: str) -> None:
    value = content()
    value["annotations"] = [annotation(1, 7, 2, SQUARE, bbox=box) for box in boxes]
    assert any(each.startswith(sentence) for each in oddities(load(value), is_evaluated=True))


def test_only_crowds(load: Load) -> None:
    value = content()
    value["annotations"] = [annotation(1, 7, 2, SQUARE, iscrowd=1)]
    (sentence,) = oddities(load(value), is_evaluated=True)
    assert sentence.startswith("all objects are crowds, from which nothing is learnt")


def test_a_start_says_it_once(
    tiny: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = build(*tiny("data.num_workers=0"))
    data.setup("fit")
    data.setup("fit")
    lines = [record.getMessage() for record in caplog.records]
    assert sum("24 images" in line and "data.train_json=" in line for line in lines) == 1
    assert sum("10 images" in line and "data.val_json=" in line for line in lines) == 1
