"""Files packed and unpacked, compared with pycocotools, and all that can be wrong with one."""

import copy
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from pycocotools.coco import COCO

from mrcnn_lightning.data.annotations import Annotations, Objects
from mrcnn_lightning.data.coco_json import pack_coco_json
from tests.conftest import shared

SQUARE = [[1.0, 1, 5, 1, 5, 5, 1, 5]]


def content() -> dict[str, Any]:
    """A small file with every kind of segmentation."""
    mask = np.zeros((8, 10), dtype=np.uint8, order="F")
    mask[2:5, 3:9] = 1
    compressed = pycocotools.mask.encode(mask)
    # Run lengths go down the columns: 3 of 8 rows and two more are empty before the first one.
    counts = [3 * 8 + 2, *[3, 5] * 5, 3, 8 + 3]
    return {
        "images": [
            {"id": 30, "file_name": "a/x.png", "height": 8, "width": 10},
            {"id": 7, "file_name": "ü.jpg", "height": 20, "width": 10},
            {"id": 1, "file_name": "z.jpg", "height": 8, "width": 10},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            annotation(1, 1, 90, {"size": [8, 10], "counts": compressed["counts"].decode()}),
            annotation(2, 30, 2, copy.deepcopy(SQUARE)),
            annotation(3, 1, 2, {"size": [8, 10], "counts": counts}, iscrowd=1),
            annotation(4, 1, 90, [*SQUARE, [2.0, 2, 7, 2, 7, 4]]),
        ],
    }


def annotation(
    id_: int, image: int, category: int, segmentation: Any, **more: Any
) -> dict[str, Any]:
    return {
        "id": id_,
        "image_id": image,
        "category_id": category,
        "bbox": [1, 1, 4, 4],
        "area": 16,
        "iscrowd": 0,
        "segmentation": segmentation,
    } | more


Load = Callable[[Any], Annotations]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def write_and_load(value: Any) -> Annotations:
        file = tmp_path / "file.json"
        if isinstance(value, bytes):
            file.write_bytes(value)
        else:
            file.write_text(value if isinstance(value, str) else json.dumps(value))
        return Annotations.load(file, cache_dir=tmp_path / "cache")

    return write_and_load


def decoded(objects: Objects, number: int, size: tuple[int, int]) -> np.ndarray:
    shape = objects.shapes[number]
    if isinstance(shape, bytes):
        return pycocotools.mask.decode({"size": list(size), "counts": shape})
    rles = pycocotools.mask.frPyObjects([p.flatten().tolist() for p in shape], *size)
    return pycocotools.mask.decode(pycocotools.mask.merge(rles))


def wrong(path: str, new: Any) -> dict[str, Any]:
    """The small file with one value replaced, or deleted if the new one is `...`."""
    value: Any = content()
    *way, last = (int(word) if word.isdigit() else word for word in path.split("."))
    node = value
    for word in way:
        node = node[word]
    if new is ...:
        del node[last]
    else:
        node[last] = new
    return value


def test_every_kind_of_segmentation(load: Load) -> None:
    packed = load(content())
    assert packed.class_names == ["cat", "dog"] and packed.category_ids == [2, 90]
    assert packed.image_ids.tolist() == [30, 7, 1] and packed.image_sizes[1].tolist() == [20, 10]
    assert [packed.file_name(index) for index in range(3)] == ["a/x.png", "ü.jpg", "z.jpg"]
    assert packed.without_mask == [] and packed.is_annotated
    objects = packed.objects(2)
    assert objects.labels.tolist() == [2, 1, 2] and objects.crowd.tolist() == [False, True, False]
    assert objects.boxes.tolist() == [[1, 1, 5, 5]] * 3
    assert np.array_equal(decoded(objects, 0, (8, 10)), decoded(objects, 1, (8, 10)))
    assert len(objects.shapes[2]) == 2 and packed.objects(0).labels.tolist() == [1]
    assert len(packed.objects(1).labels) == 0 and packed.objects(1).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "file", ["coco_tiny/annotations/instances_train2017", "balloon/annotations/instances_val"]
)
def test_real_files_are_what_pycocotools_reads(file: str, tmp_path: Path) -> None:
    path = shared(f"data/{file}.json")
    packed, peer = Annotations.load(path, cache_dir=tmp_path), COCO(str(path))
    labels = {category: label for label, category in enumerate(sorted(peer.getCatIds()), start=1)}
    assert sorted(packed.image_ids.tolist()) == sorted(peer.getImgIds())
    for index, image_id in enumerate(packed.image_ids.tolist()):
        objects, expected = packed.objects(index), peer.imgToAnns[image_id]
        image = peer.imgs[image_id]
        assert packed.file_name(index) == image["file_name"]
        assert objects.labels.tolist() == [labels[entry["category_id"]] for entry in expected]
        assert objects.crowd.tolist() == [bool(entry["iscrowd"]) for entry in expected]
        for number, entry in enumerate(expected):
            x, y, width, height = entry["bbox"]
            box = torch.tensor([x, y, x + width, y + height], dtype=torch.float32)
            assert torch.equal(objects.boxes[number], box)
            mask = decoded(objects, number, (image["height"], image["width"]))
            assert (mask != peer.annToMask(entry)).mean() < 1e-3  # float32 corners


def test_a_file_is_packed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "file.json", tmp_path / "cache"
    file.write_text(json.dumps(content()))
    Annotations.load(file, cache_dir=cache)
    (packed,) = cache.glob("*.pt")
    written = packed.stat().st_mtime_ns
    Annotations.load(file, cache_dir=cache)
    assert packed.stat().st_mtime_ns == written
    file.write_text(json.dumps(content() | {"annotations": []}))
    assert len(Annotations.load(file, cache_dir=cache).objects(0).labels) == 0
    assert len(list(cache.glob("*.pt"))) == 2


def test_what_cannot_be_learnt_from_is_left_out(load: Load) -> None:
    value = content()
    value["annotations"] += [
        annotation(5, 7, 2, SQUARE, bbox=[1, 1, 0, 4]),
        annotation(6, 7, 2, [[1, 1, 2, 2]]),
        annotation(7, 7, 2, [[1, 1, 2, 2], *SQUARE]),
        annotation(8, 7, 2, SQUARE, bbox=[10, 1, 4, 4]),
    ]
    packed = load(value)
    assert packed.left_out == {
        "boxes without area": 1,
        "polygons of fewer than three points": 1,
        "boxes outside their image": 1,
    }
    truth = packed.ground_truth([7], of_masks=False)
    assert [each["bbox"] for each in truth["annotations"]] == [[1, 1, 4, 4]]
    assert packed.without_mask == [] and len(packed.objects(1).labels) == 1
    assert len(packed.objects(1).shapes[0]) == 1


def test_boxes_alone(load: Load) -> None:
    value = content()
    for entry in value["annotations"]:
        del entry["segmentation"]
    packed = load(value)
    assert packed.without_mask == [2, 1, 4] and packed.objects(2).shapes == [b""] * 3
    value["annotations"] = [annotation(1, 1, 2, [], iscrowd=1)]
    assert load(value).without_mask == []


def test_no_annotations_at_all(load: Load) -> None:
    value = content()
    del value["annotations"]
    packed = load(value)
    assert sum(len(packed.objects(index).labels) for index in range(3)) == 0
    assert not packed.is_annotated and load(value | {"annotations": []}).is_annotated
    nothing = load(value | {"annotations": None})
    assert len(nothing.objects(0).labels) == 0 and not nothing.is_annotated


def test_numbers_that_are_whole_though_they_are_floats(load: Load) -> None:
    value = content()
    value["images"][2] |= {"id": 1.0, "height": 8.0}
    value["annotations"][0]["category_id"] = 90.0
    packed = load(value)
    assert packed.image_ids.dtype == torch.int64 and packed.image_sizes[2].tolist() == [8, 10]
    assert packed.objects(2).labels.tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    ("value", "is_crowd"), [(0, False), (1, True), (False, False), (True, True), (..., False)]
)
def test_crowds_however_they_are_written(load: Load, value: Any, is_crowd: bool) -> None:
    packed = load(wrong("annotations.1.iscrowd", value))
    assert packed.objects(0).crowd.tolist() == [is_crowd]
    (truth,) = packed.ground_truth([30], of_masks=True)["annotations"]
    assert truth["iscrowd"] is int(is_crowd)


@pytest.mark.parametrize("area", [0, None, "16", -3, float("nan"), True, [1]])
def test_an_odd_area_is_measured(load: Load, area: Any) -> None:
    value = wrong("annotations.1.area", area)
    value["annotations"][1]["bbox"] = [0.5, 1, 4, 5]
    packed = load(value)
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(SQUARE, 8, 10))
    (truth,) = packed.ground_truth([30], of_masks=True)["annotations"]
    assert truth["area"] == pycocotools.mask.area(rle) == 16 and packed.odd_areas == 1
    del value["annotations"][1]["segmentation"]
    packed = load(value)
    (truth,) = packed.ground_truth([30], of_masks=False)["annotations"]
    assert truth["area"] == 20 and packed.odd_areas == 1
    del value["annotations"][1]["area"]
    assert load(value).odd_areas == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_ground_truth_is_what_pycocotools_reads(split: str, tmp_path: Path) -> None:
    path = shared(f"data/coco_tiny/annotations/instances_{split}2017.json")
    packed, peer = Annotations.load(path, cache_dir=tmp_path), COCO(str(path))
    ids = sorted(peer.getImgIds())
    for of_masks in (False, True):
        truth = packed.ground_truth(ids, of_masks=of_masks)
        expected = [entry for image_id in ids for entry in peer.imgToAnns[image_id]]
        for ours, theirs in zip(truth["annotations"], expected, strict=True):
            for key in ("image_id", "category_id", "area", "iscrowd"):
                assert ours[key] == theirs[key]
            if of_masks:
                assert ours["segmentation"]["counts"] == peer.annToRLE(theirs)["counts"]
            else:
                assert ours["bbox"] == theirs["bbox"]


def test_json_that_is_not_by_the_book(load: Load) -> None:
    """Python writes NaN; Windows' editors a mark at the start, or UTF-16."""
    value = content()
    value["annotations"][0]["score"] = float("nan")
    boxes = load(content()).objects(2).boxes
    assert torch.equal(load(value).objects(2).boxes, boxes)
    for encoding in ("utf-8-sig", "utf-16"):
        assert torch.equal(load(json.dumps(value).encode(encoding)).objects(2).boxes, boxes)


@pytest.mark.parametrize("damaged", ["empty", "cut off", "other"])
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, cache = tmp_path / "file.json", tmp_path / "cache"
    file.write_text(json.dumps(content()))
    boxes = Annotations.load(file, cache_dir=cache).objects(2).boxes
    (packed,) = cache.glob("*.pt")
    whole = packed.read_bytes()
    torch.save({}, tmp_path / "other.pt")
    other = (tmp_path / "other.pt").read_bytes()
    packed.write_bytes({"empty": b"", "cut off": whole[: len(whole) // 2], "other": other}[damaged])
    assert torch.equal(Annotations.load(file, cache_dir=cache).objects(2).boxes, boxes)
    assert "is damaged and is made anew" in caplog.text
    assert len(packed.read_bytes()) == len(whole)
    caplog.clear()
    Annotations.load(file, cache_dir=cache)
    assert not caplog.records


def test_a_cache_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache, seen = tmp_path / "file.json", tmp_path / "cache", []
    file.write_text(json.dumps(content()))
    monkeypatch.setattr("os.fsync", lambda _: seen.append(list(cache.glob("*.pt"))))
    Annotations.load(file, cache_dir=cache)
    assert seen == [[]] and len(list(cache.glob("*.pt"))) == 1


def test_a_full_disk_leaves_nothing_unfinished(tmp_path: Path) -> None:
    file, cache = tmp_path / "file.json", tmp_path / "cache"
    file.write_text(json.dumps(content()))
    Annotations.load(file, cache_dir=cache)
    (packed,) = cache.glob("*.pt")
    packed.unlink()
    packed.with_suffix(".unfinished").symlink_to("/dev/full")
    with pytest.raises(ValueError, match=r"data.cache_dir=.* cannot be written to, give another"):
        Annotations.load(file, cache_dir=cache)
    assert not list(cache.glob("*.unfinished"))


def test_a_file_with_the_longest_name(tmp_path: Path) -> None:
    file = tmp_path / f"{'é' * 125}.json"
    file.write_text(json.dumps(content()))
    assert len(Annotations.load(file, cache_dir=tmp_path)) == 3


def test_a_large_file_is_never_in_memory_as_objects(tmp_path: Path) -> None:
    """A number of a polygon is text of 7 bytes, or 8 packed; as an object of Python it is 32."""
    value, polygon = content(), [[float(number % 97) + 0.25 for number in range(80)]]
    value["annotations"] = [annotation(number, 7, 2, polygon) for number in range(3000)]
    file = tmp_path / "file.json"
    file.write_text(json.dumps(value))
    pack_coco_json(file)  # what is made once
    tracemalloc.start()
    try:
        pack_coco_json(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * file.stat().st_size


def test_another_process_opens_the_file_for_itself(load: Load) -> None:
    packed = load(content())
    sent = pickle.dumps(packed)
    assert len(sent) < 1000
    assert pickle.loads(sent).objects(2).boxes.tolist() == packed.objects(2).boxes.tolist()


def test_a_cache_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(json.dumps(content()))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match=r"data.cache_dir=.*cache cannot be written to, give ano"):
        Annotations.load(tmp_path / "file.json", cache_dir=tmp_path / "cache")


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", r"file.json is not a JSON file"),
        ("", r"file.json is not a JSON file: it is empty"),
        (NESTED, r"file.json is no COCO-format file: it is nested too deeply"),
        (f'{{"images": {NESTED}}}', r"file.json is no COCO-format file: it is nested too deeply"),
        (
            json.dumps(content()).replace('"bbox": [1', f'"bbox": [{NESTED}', 1),
            r"file.json is no COCO-format file: it is nested too deeply",
        ),
        (wrong("annotations.1.iscrowd", "0"), r"annotation 2 has iscrowd='0', which must be 0 or"),
        (wrong("annotations.1.iscrowd", None), r"annotation 2 has iscrowd=None, which must be 0"),
        (wrong("annotations.1.iscrowd", 2), r"annotation 2 has iscrowd=2, which must be 0 or 1"),
        (wrong("annotations.1.iscrowd", []), r"annotation 2 has iscrowd=\[\], which must be 0 or"),
        (
            wrong("images.1.id", 2**70),
            r"image 2 of 3 has id=1180.*, .* from 0 on and below 2\*\*63",
        ),
        (wrong("images.1.height", 2**70), r"image 2 of 3 has height=118.*, .* and below 2\*\*16"),
        (wrong("categories.1.id", 2**70), r"category 2 of 2 has id=1180.*, .* and below 2\*\*63"),
        (wrong("annotations.1.bbox.2", 10**400), r"annotation 2 has bbox=.* four numbers"),
        (wrong("annotations.1.segmentation.0.3", 10**400), r"annotation 2 .* finite numbers"),
        (wrong("annotations.1.segmentation.0.3", 1e39), r"annotation 2 .* finite numbers"),
        (wrong("annotations.1.image_id", 2**70), r"1 annotations name an image .*: annotation 2"),
        (wrong("images.1.file_name", "a\ud800"), r"image 2 of 3 has file_name=.*ud800.* surrogate"),
        (wrong("categories.1.name", "\udce4"), r"category 2 of 2 has name=.*udce4.* surrogate"),
        (wrong("images.1.file_name", "a/" + "é" * 128), r"image 2 of 3 .* at most 255 bytes"),
        ([], r"file.json is no COCO-format file: it has no list of images"),
        (wrong("categories", ...), r"it has no list of categories"),
        (wrong("images", []), r"file.json has no images"),
        (wrong("images.1", 3), r"no COCO-format file: its images are no list of objects"),
        (wrong("annotations", {"a": 1}), r"its annotations are no list of objects"),
        (wrong("images.1.height", ...), r"image 2 of 3 has height=None, which must be a whole"),
        (wrong("images.1.height", 0), r"image 2 of 3 has height=0, .* whole number from 1 on"),
        (wrong("images.1.id", -1), r"image 2 of 3 has id=-1, .* whole number from 0 on"),
        (wrong("images.1.id", 1.5), r"image 2 of 3 has id=1.5, which must be a whole number"),
        (wrong("images.1.file_name", 3), r"image 2 of 3 has file_name=3, which must be text"),
        (wrong("images.1.id", 30), r"has two images with the id 30"),
        (wrong("categories.1.id", 90), r"has two categories with the id 90"),
        (wrong("categories.1.name", "dog"), r"has two categories with the name dog"),
        (wrong("annotations.1.image_id", 5), r"1 annotations name an image .*: annotation 2 \(im"),
        (
            wrong("annotations.1.category_id", ...),
            r"1 annotations name a category .*: annotation 2",
        ),
        (
            wrong("annotations.1.category_id", [2]),
            r"1 annotations name a category .*: annotation 2",
        ),
        (wrong("annotations.1.bbox", [1, 2, 3]), r"annotation 2 has bbox=\[1, 2, 3\], .* four"),
        (wrong("annotations.1.bbox.2", None), r"annotation 2 has bbox=.* four numbers"),
        (wrong("annotations.1.bbox.2", float("nan")), r"annotation 2 has bbox=.* four numbers"),
        (wrong("annotations.1.segmentation", [[1, 2, 3]]), r"of annotation 2 is no list of polyg"),
        (wrong("annotations.1.segmentation", ["x"]), r"of annotation 2 is no list of polygons"),
        (wrong("annotations.1.segmentation", [["1"] * 6]), r"of annotation 2 is no list of polyg"),
        (wrong("annotations.1.segmentation", [[[1, 1]] * 4]), r"annotation 2 is no list of polyg"),
        (wrong("annotations.1.segmentation.0.3", float("nan")), r"annotation 2 .* finite numbers"),
        (wrong("annotations.1.segmentation.0.3", float("inf")), r"annotation 2 .* finite numbers"),
        (wrong("annotations.1.segmentation", 7), r"2 is neither a list of polygons nor run"),
        (wrong("annotations.1.segmentation", {"a": 1}), r"annotation 2 is of size None, its image"),
        (wrong("annotations.0.segmentation.size", [10, 8]), r"of size \[10, 8\], its image of"),
        (wrong("annotations.0.segmentation.size", 8), r"of size 8, its image of"),
        (wrong("annotations.0.segmentation.counts", "52"), r"run lengths whose sum is not"),
        (wrong("annotations.0.segmentation.counts", "abc"), r"counts that end within a number"),
        (wrong("annotations.0.segmentation.counts", "ü"), r"counts that are no compressed run"),
        (wrong("annotations.0.segmentation.counts", None), r"neither a text nor a list of whole"),
        (wrong("annotations.2.segmentation.counts", [3, 4]), r"run lengths whose sum is not"),
        (wrong("annotations.2.segmentation.counts", [90, -10]), r"run lengths whose sum is not"),
        (wrong("annotations.2.segmentation.counts", [80.0]), r"neither a text nor a list of who"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(load: Load, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(value)


def test_nothing_is_left_of_a_file_that_was_refused(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("{}")
    with pytest.raises(ValueError, match="no COCO-format file"):
        Annotations.load(tmp_path / "file.json", cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.pt"))
