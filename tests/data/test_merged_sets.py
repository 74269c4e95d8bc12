"""Several sets as one: every object stands where it stood, under its class's name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.user_error import UserError


def written(file: Path, classes: dict[int, str], objects: list[list[int]]) -> Path:
    """Images of 40 x 30 with ids 1, 2, ...; each has objects of some categories."""
    annotations: list[dict[str, Any]] = []
    for image, categories in enumerate(objects, start=1):
        for category in categories:
            number = len(annotations) + 1
            entry = {"id": number, "image_id": image, "category_id": category, "iscrowd": 0}
            box = [number, 2, 5, 6]
            x, y = float(number), 2.0
            polygon = [x, y, x + 5, y, x + 5, y + 6] + ([x, y + 6] if number % 2 else [])
            rle = {"size": [30, 40], "counts": [40 * number, 9, 1200 - 40 * number - 9]}
            shape = rle if number % 3 == 0 else [polygon] * (1 + number % 2)
            annotations.append(entry | {"bbox": box, "area": 30 + number, "segmentation": shape})
    content = {
        "images": [
            {"id": image, "file_name": f"{file.stem}_{image}.png", "height": 30, "width": 40}
            for image in range(1, len(objects) + 1)
        ],
        "categories": [{"id": each, "name": name} for each, name in classes.items()],
        "annotations": annotations,
    }
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
def parts(tmp_path: Path) -> list[Annotations]:
    first = written(tmp_path / "a.json", {1: "cat", 7: "ball"}, [[1, 7, 1], [], [7, 7, 1, 7]])
    second = written(tmp_path / "b.json", {1: "balloon", 2: "cat"}, [[2, 1, 2], [1]])
    return [Annotations.load(file, cache_dir=tmp_path / "cache") for file in (first, second)]


CHANGES: list[dict[str, str | None]] = [{}, {"balloon": "toy", "ball": "toy"}, {"cat": None}]


@pytest.mark.parametrize("classes", CHANGES)
def test_objects_stay_what_they_are(
    parts: list[Annotations], classes: dict[str, str | None], tmp_path: Path
) -> None:
    whole = Annotations.merge(parts, classes, cache_dir=tmp_path / "cache")
    assert whole.sets().tolist() == [0, 0, 0, 1, 1]
    assert whole.image_ids.tolist() == [1, 2, 3, 4, 5]  # both begin at 1
    index = 0
    for part in parts:
        for own in range(len(part)):
            assert whole.file_name(index) == part.file_name(own)
            before, after = part.objects(own), whole.objects(index)
            names = [part.class_names[label - 1] for label in before.labels.tolist()]
            kept = [n for n, name in enumerate(names) if classes.get(name, name) is not None]
            assert [whole.class_names[label - 1] for label in after.labels.tolist()] == [
                classes.get(names[n], names[n]) for n in kept
            ]
            assert torch.equal(after.boxes, before.boxes[kept])
            for shape, number in zip(after.shapes, kept, strict=True):
                expected = before.shapes[number]
                if isinstance(shape, bytes) or isinstance(expected, bytes):
                    assert shape == expected
                else:
                    assert [p.tolist() for p in shape] == [p.tolist() for p in expected]
            index += 1
    truth = whole.ground_truth(whole.image_ids.tolist(), of_masks=False)
    assert len(truth["annotations"]) == len(whole.labels)


def test_classes_and_ids(parts: list[Annotations], tmp_path: Path) -> None:
    def merge(classes: dict[str, str | None], *, chosen: list[Annotations] = parts) -> Annotations:
        return Annotations.merge(chosen, classes, cache_dir=tmp_path / "cache")

    whole = merge({})  # cat and balloon would both have the id 1
    assert (whole.class_names, whole.category_ids) == (["cat", "ball", "balloon"], [1, 2, 3])
    toys = merge({"balloon": "toy", "ball": "toy"})
    assert (toys.class_names, toys.category_ids) == (["cat", "toy"], [1, 7])
    assert toys.fingerprint != whole.fingerprint
    alone = merge({"ball": "toy"}, chosen=parts[:1])
    assert alone.image_ids.tolist() == [1, 2, 3] and alone.class_names == ["cat", "toy"]
    # By their ids, as those of a single file are.
    late = written(tmp_path / "c.json", {9: "ball", 3: "cat"}, [[9], [3]])
    early = written(tmp_path / "d.json", {2: "dog", 3: "cat"}, [[2, 3]])
    pair = [Annotations.load(file, cache_dir=tmp_path / "cache") for file in (late, early)]
    assert merge({}, chosen=pair).class_names == ["dog", "cat", "ball"]
    assert merge({}, chosen=pair).labels.tolist() == [3, 2, 1, 2]
    with pytest.raises(UserError, match="leaves out every class"):
        merge({"cat": None, "ball": None}, chosen=parts[:1])
