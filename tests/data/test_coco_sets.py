import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mrcnn_lightning.data import coco_sets
from mrcnn_lightning.data.checking.check import check
from mrcnn_lightning.data.checking.repair import repair
from mrcnn_lightning.data.coco_json import pack_coco_json
from mrcnn_lightning.data.formats.coco import read_coco
from mrcnn_lightning.user_error import UserError


def content(names: list[str], classes: dict[str, int], **more: Any) -> dict[str, Any]:
    """Images of one object each, of the classes by turns."""
    ids = list(classes.values())
    return {
        "info": {"year": 2020, "mine": names[0]},
        "licenses": [{"id": 4, "name": "CC BY"}],
        "images": [
            {"id": n, "file_name": name, "width": 40, "height": 30, "license": 4, "camera": "x"}
            for n, name in enumerate(names)
        ],
        "annotations": [
            {"id": n + 10, "image_id": n, "category_id": ids[n % len(ids)], "bbox": [1, 2, 3, 4]}
            | {"area": 12, "iscrowd": 0, "segmentation": [[1, 2, 4, 2, 4, 6]], "drawn_by": name}
            for n, name in enumerate(names)
        ],
        "categories": [{"id": i, "name": name, "mine": 1} for name, i in classes.items()],
    } | more


def test_split_keeps_copies_and_keys(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(20)]
    for n, name in enumerate(names):
        noise = np.random.default_rng(n // 2).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        size = (160 + 40 * (n % 2), 120 + 30 * (n % 2))  # each photo twice, once larger
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(tmp_path / name)
    whole = content(names, {"a": 3, "b": 9}, videos=[1])
    parts = coco_sets.split(whole, tmp_path, {"train": 0.7, "val": 0.3})
    for key in ("images", "annotations"):
        both = [each for part in parts.values() for each in part[key]]
        assert sorted(both, key=lambda e: e["id"]) == whole[key]
    for part in parts.values():
        assert all(part[key] == whole[key] for key in ("info", "licenses", "categories", "videos"))
        numbers = sorted(image["id"] for image in part["images"])
        assert numbers[1::2] == [n + 1 for n in numbers[::2]] and not numbers[0] % 2
        coco_sets.write_content(part, tmp_path / "part.json")
        pack_coco_json(tmp_path / "part.json")
    (tmp_path / "3.png").unlink()
    with pytest.raises(UserError, match=r"1 of 20 images are missing .*3\.png"):
        coco_sets.split(whole, tmp_path, {"train": 0.7, "val": 0.3})


def test_merge_matches_classes_by_name(tmp_path: Path) -> None:
    first = content(["a.png", "b.png"], {"cat": 1, "dog": 2})
    second = content(["c.png", "d.png"], {"dog": 1, "bird": 7, "cow": 2}, extra="x")
    second["licenses"] = [{"id": 4, "name": "CC0"}, {"id": 5, "name": "CC BY"}]
    merged, notes = coco_sets.merge({"A": first, "B": second})
    names = {each["id"]: each["name"] for each in merged["categories"]}
    assert list(names.items()) == [(1, "cat"), (2, "dog"), (7, "bird"), (8, "cow")]
    assert [names[each["category_id"]] for each in merged["annotations"]] == [
        "cat",
        "dog",
        "dog",
        "bird",
    ]
    files = {image["id"]: image["file_name"] for image in merged["images"]}
    assert [files[e["image_id"]] for e in merged["annotations"]] == [
        e["drawn_by"] for e in merged["annotations"]
    ]
    licences = {each["id"]: each["name"] for each in merged["licenses"]}
    said = [licences[image["license"]] for image in merged["images"]]
    assert said == ["CC BY", "CC BY", "CC0", "CC0"]
    assert merged["extra"] == "x" and merged["merged_infos"] == [second["info"]] and not notes
    assert len({each["id"] for each in merged["annotations"]}) == 4
    (tmp_path / "merged.json").write_text(json.dumps(merged))
    pack_coco_json(tmp_path / "merged.json")


def test_images_of_one_name() -> None:
    first, second = content(["a.png"], {"cat": 1}), content(["a.png"], {"cat": 1})
    with pytest.raises(UserError, match=r"A and B both have an image a\.png"):
        coco_sets.merge({"A": first, "B": second})
    folder, contents = coco_sets.relative_to_one([Path("/x/one"), Path("/x/two")], [first, second])
    merged, _ = coco_sets.merge(dict(zip("AB", contents, strict=True)))
    assert [image["file_name"] for image in merged["images"]] == ["one/a.png", "two/a.png"]
    assert folder == Path("/x") and first["images"][0]["file_name"] == "a.png"


def test_renamed_classes_become_one() -> None:
    both = coco_sets.with_class_names(content(["a", "b"], {"auto": 5, "car": 2}), {"auto": "car"})
    assert both["categories"] == [{"id": 5, "name": "car", "mine": 1}]
    assert {each["category_id"] for each in both["annotations"]} == {5}


def test_subset_keeps_ids() -> None:
    whole = content([f"{n}.png" for n in range(9)], {"a": 3, "b": 9, "c": 4})
    some = coco_sets.with_classes(whole, ["b", "c"])
    assert [each["id"] for each in some["categories"]] == [9, 4]
    assert [each["id"] for each in some["images"]] == [1, 2, 4, 5, 7, 8]
    assert all(each in whole["annotations"] for each in some["annotations"])
    few = coco_sets.with_some_images(whole, 4, seed=1)
    assert len(few["images"]) == len(few["annotations"]) == 4
    with pytest.raises(UserError, match="no class d; there are a, b, c"):
        coco_sets.with_classes(whole, ["d"])
    with pytest.raises(UserError, match="10 images are wanted, there are 9"):
        coco_sets.with_some_images(whole, 10)


def test_lvis_lists_and_names(tmp_path: Path) -> None:
    """Its images are named by their address, and its lists follow the ids of the classes."""
    whole = content(["a.png", "b.png"], {"cat": 5, "dog": 2, "fox": 3})
    for category in whole["categories"]:
        category["frequency"] = "r"
    for image in whole["images"]:
        image["coco_url"] = f"http://x.org/val2017/{image.pop('file_name')}"
        image |= {"neg_category_ids": [3, 5], "not_exhaustive_category_ids": [2]}
    (tmp_path / "lvis.json").write_text(json.dumps(whole))
    read = coco_sets.read_content(tmp_path / "lvis.json")
    assert [image["file_name"] for image in read["images"]] == ["val2017/a.png", "val2017/b.png"]
    assert read_coco(tmp_path / "lvis.json").images[0].file_name == "val2017/a.png"

    def lists(found: dict[str, Any]) -> Any:
        image = found["images"][-1]
        return image["neg_category_ids"], image["not_exhaustive_category_ids"]

    assert lists(coco_sets.with_classes(read, ["dog", "fox"])) == ([3], [2])
    assert lists(coco_sets.with_class_names(read, {"cat": "fox"})) == ([5], [2])
    assert lists(coco_sets.with_class_names(read, {"cat": "dog"})) == ([3], [5])
    other = content(["c.png"], {"fox": 2, "dog": 7})
    assert lists(coco_sets.merge({"A": other, "B": read})[0]) == ([2, 5], [7])
    (tmp_path / "val2017").mkdir()
    for name in "ab":
        noise = np.random.default_rng(ord(name)).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "val2017" / f"{name}.png")
    checked = check(tmp_path / "lvis.json", tmp_path)
    assert not {"file-name", "image-missing"} & {fault.name for fault in checked.found()}
    repair(tmp_path / "lvis.json", tmp_path, tmp_path / "fixed.json", checked=checked)
    fixed = json.loads((tmp_path / "fixed.json").read_text())
    assert [image["file_name"] for image in fixed["images"]] == ["val2017/a.png", "val2017/b.png"]
