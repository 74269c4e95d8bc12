"""Every format there and back, against pycocotools' pixels; and what is wrong with files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image

from mrcnn_lightning.data.coco_json import pack_coco_json
from mrcnn_lightning.data.formats.coco import read_coco
from mrcnn_lightning.data.formats.convert import Source, convert, detect
from mrcnn_lightning.data.formats.image_set import ImageSet
from mrcnn_lightning.user_error import UserError
from tests.conftest import shared

FILES = {"cvat": "set.xml", "via": "set.json", "coco": "set.json"}
EXACT = ["coco", "cvat", "labelme", "png"]


def ring() -> dict[str, Any]:
    """A crowd with a hole, and a pixel that touches it by a corner."""
    mask = np.zeros((60, 80), dtype=np.uint8, order="F")
    mask[30:50, 10:40] = 1
    mask[35:42, 20:28] = 0
    mask[50, 40] = 1
    rle = pycocotools.mask.encode(mask)
    return {"size": [60, 80], "counts": rle["counts"].decode()}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Several polygons, a hole, a crowd, an image without objects, names with more than ASCII."""
    folder = tmp_path / "images"
    (folder / "ä").mkdir(parents=True)
    images = [("ä/Straße 1.png", 80, 60), ("b.png", 33, 47)]
    for name, width, height in images:
        Image.new("RGB", (width, height)).save(folder / name)
    shapes: list[tuple[str, Any, int]] = [
        ("猫", [[10.5, 5.25, 30.5, 5.25, 30.5, 20, 10.5, 20.75]], 0),
        ("hot dog", [[40, 5, 50, 5, 50, 15, 40, 15], [60, 30, 70, 30, 65, 40]], 0),
        ("猫", ring(), 1),
        ("hot dog", [[70, 40, 80, 40, 80, 60, 70, 60]], 0),
    ]
    ids = {"猫": 7, "hot dog": 3}
    annotations = []
    for number, (name, shape, crowd) in enumerate(shapes):
        box = [10, 30, 31, 21]
        if isinstance(shape, list):
            points = np.concatenate(shape).reshape(-1, 2)
            low, high = points.min(0), points.max(0)
            box = [*low.tolist(), *(high - low).tolist()]
        annotations.append(
            {"id": number + 5, "image_id": 2, "category_id": ids[name], "bbox": box, "area": 9}
            | {"segmentation": shape, "iscrowd": crowd}
        )
    content = {
        "images": [
            {"id": 2 - number, "file_name": name, "width": width, "height": height}
            for number, (name, width, height) in enumerate(images)
        ],
        "categories": [{"id": ids[name], "name": name} for name in ids],
        "annotations": annotations,
    }
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    return file


def there_and_back(file: Path, images: Path, to: Any, folder: Path) -> ImageSet:
    out = folder / FILES.get(to, to)
    placing: Any = "link" if to == "yolo" else "leave"
    convert(Source(file, "coco", images=images), out, to, placing=placing)
    assert detect(out) == to
    convert(Source(out, to, images=None if to == "yolo" else images), folder / "back.json", "coco")
    pack_coco_json(folder / "back.json")
    return read_coco(folder / "back.json")


def least_iou(before: ImageSet, after: ImageSet, *, crowds: bool) -> float:
    """After all else is seen to be equal."""
    assert {(i.file_name, i.size) for i in before.images} == {
        (i.file_name, i.size) for i in after.images
    }
    found = {image.file_name: image.objects for image in after.images}
    ious = []
    for image in before.images:
        objects = [each for each in image.objects if crowds or not each.is_crowd]
        for old, new in zip(objects, found[image.file_name], strict=True):
            assert (new.class_name, new.is_crowd) == (old.class_name, old.is_crowd)
            pair = [old.rle(image.size)], [new.rle(image.size)]
            ious.append(float(pycocotools.mask.iou(*pair, [0])[0, 0]))
    return min(ious)


@pytest.mark.parametrize("to", ["coco", "cvat", "labelme", "png", "via", "voc", "yolo"])
def test_there_and_back(coco: Path, tmp_path: Path, to: str) -> None:
    before = read_coco(coco)
    after = there_and_back(coco, tmp_path / "images", to, tmp_path)
    least = least_iou(before, after, crowds=to != "yolo")
    assert least == 1 if to in EXACT else least > 0.98
    assert set(after.class_names) == set(before.class_names)


@pytest.mark.parametrize("to", ["cvat", "labelme", "png", "via", "yolo"])
def test_real_annotations(tmp_path: Path, to: str) -> None:
    file = shared("data/coco_tiny/annotations/instances_val2017.json")
    content = json.loads(file.read_text())
    crowded = {each["image_id"] for each in content["annotations"] if each["iscrowd"]}
    content["images"] = [each for each in content["images"] if each["id"] in sorted(crowded)[:4]]
    ids = {each["id"] for each in content["images"]}
    content["annotations"] = [e for e in content["annotations"] if e["image_id"] in ids]
    (tmp_path / "coco.json").write_text(json.dumps(content))
    images = shared("data/coco_tiny/val2017") if to != "yolo" else tmp_path / "images"
    if to == "yolo":  # takes all images of its folder
        images.mkdir()
        for each in content["images"]:
            source = shared("data/coco_tiny/val2017") / each["file_name"]
            (images / each["file_name"]).symlink_to(source)
    after = there_and_back(tmp_path / "coco.json", images, to, tmp_path)
    assert least_iou(read_coco(tmp_path / "coco.json"), after, crowds=to != "yolo") > 0.98


@pytest.mark.parametrize("to", ["labelme", "voc", "yolo"])
def test_supervision_reads_the_same_boxes(coco: Path, tmp_path: Path, to: Any) -> None:
    supervision = pytest.importorskip("supervision")
    content = json.loads(coco.read_text())
    content["annotations"] = [e for e in content["annotations"] if not e["iscrowd"]]
    content["images"][0]["file_name"] = "a.png"
    coco.write_text(json.dumps(content))
    (tmp_path / "images" / "ä/Straße 1.png").rename(tmp_path / "images" / "a.png")
    out = tmp_path / "out"
    convert(Source(coco, "coco", images=tmp_path / "images"), out, to, placing="copy")
    read = {
        "labelme": lambda: supervision.DetectionDataset.from_labelme(str(out), str(out)),
        "voc": lambda: supervision.DetectionDataset.from_pascal_voc(
            str(out / "JPEGImages"), str(out / "Annotations")
        ),
        "yolo": lambda: supervision.DetectionDataset.from_yolo(
            str(out / "images/train"), str(out / "labels/train"), str(out / "data.yaml")
        ),
    }[to]
    theirs = read()
    (found,) = [each for path, each in theirs.annotations.items() if path.endswith("a.png")]
    (ours,) = (image.objects for image in read_coco(coco).images if image.objects)
    names = [theirs.classes[number] for number in found.class_id]
    assert names == [each.class_name for each in ours]
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in (each.box for each in ours)])
    # A pixel: they count VOC's from 1, and draw YOLO's polygons.
    assert np.abs(found.xyxy - boxes).max() <= (1e-3 if to == "labelme" else 1.5)


def test_parts_of_yolo_share_one_data_yaml(coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "yolo"
    source = Source(coco, "coco", images=tmp_path / "images")
    for part in ("train", "val"):
        convert(source, out, "yolo", part=part, placing="link")
    with pytest.raises(UserError, match="choose with --part"):
        convert(Source(out, "yolo"), tmp_path / "back.json", "coco")
    (out / "labels/val/b.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    (tmp_path / "moved").mkdir()
    out.rename(tmp_path / "moved" / "yolo")
    there = tmp_path / "moved/yolo/images/val"
    there.rename(tmp_path / "elsewhere")
    there.symlink_to(tmp_path / "elsewhere")
    done = convert(Source(tmp_path / "moved/yolo", "yolo", part="val"), tmp_path / "b.json", "coco")
    assert sum(len(image.objects) for image in done.image_set.images) == 4
    with pytest.raises(UserError, match="other classes"):
        (tmp_path / "moved/yolo/data.yaml").write_text("names: [a]")
        convert(source, tmp_path / "moved/yolo", "yolo")


def test_labels_as_others_draw_them(tmp_path: Path) -> None:
    """VIA 1's regions and shapes, LabelMe's, CVAT's, and label images as of PennFudan."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    region = {"shape_attributes": {"name": "circle", "cx": 20, "cy": 15, "r": 10}}
    rect = {"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}}
    entry = {"filename": "a.png", "size": 9, "regions": {"0": region, "1": rect}}
    (tmp_path / "via.json").write_text(json.dumps({"a.png9": entry}))
    source = Source(tmp_path / "via.json", "via", class_name="balloon")
    circle, box = convert(source, tmp_path / "o.json", "coco").image_set.images[0].objects
    area = pycocotools.mask.area(circle.rle((30, 40)))
    assert area == pytest.approx(np.pi * 100, rel=0.02) and box.box == (1, 2, 3, 4)

    labelme = tmp_path / "labelme"
    labelme.mkdir()
    shapes = [
        {"label": "x", "points": [[1, 2], [5, 9]], "shape_type": "rectangle"},
        {"label": "x", "points": [[20, 15], [26, 23]], "shape_type": "circle"},
        {"label": "x", "points": [[5, 9]], "shape_type": "point"},
    ]
    image = {"imagePath": "..\\a.png", "imageHeight": 30, "imageWidth": 40, "shapes": shapes}
    (labelme / "a.json").write_text(json.dumps(image), encoding="utf-8-sig")
    done = convert(Source(labelme, detect(labelme)), tmp_path / "o.json", "coco").image_set
    assert [each.box for each in done.images[0].objects] == [(1, 2, 4, 7), (10, 5, 20, 20)]
    assert list(done.notes.values()) == [1] and done.images[0].file_name == "../a.png"

    (tmp_path / "cvat.xml").write_text(
        '<annotations><image id="0" name="a.png" width="40" height="30">'
        '<box label="x" xtl="10" ytl="5" xbr="20" ybr="25" rotation="90"/>'
        '<mask label="x" rle="1, 2, 1, 2" left="3" top="4" width="3" height="2"/>'
        "</image></annotations>"
    )
    turned, mask = (
        convert(Source(tmp_path / "cvat.xml", "cvat"), tmp_path / "o.json", "coco")
        .image_set.images[0]
        .objects
    )
    assert turned.box == pytest.approx((5, 10, 20, 10)) and mask.box == (4, 4, 2, 2)
    assert np.argwhere(mask.mask((30, 40))).tolist() == [[4, 4], [4, 5], [5, 4], [5, 5]]

    (tmp_path / "png/images").mkdir(parents=True)
    (tmp_path / "png/masks").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "png/images/p.png")
    values = np.zeros((30, 40), dtype=np.uint16)
    values[2:5, 3:9], values[10:12, 3:9] = 1, 700
    Image.fromarray(values).save(tmp_path / "png/masks/p_mask.png")
    source = Source(tmp_path / "png", "png", class_name="person")
    done = convert(source, tmp_path / "o.json", "coco").image_set
    assert [each.box for each in done.images[0].objects] == [(3, 2, 6, 3), (3, 10, 6, 2)]


def test_boxes_beside_polygons(tmp_path: Path) -> None:
    """LabelMe's groups keep both; YOLO gets polygons alone; VOC's old masks go."""
    (tmp_path / "labelme").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "labelme/a.png")
    shapes = [
        {"label": "x", "points": [[1, 2], [5, 2], [5, 9]], "group_id": 1},
        {"label": "x", "points": [[20, 2], [26, 9]], "shape_type": "rectangle", "group_id": 1},
        {"label": "x", "points": [[10, 20], [16, 28]], "shape_type": "rectangle"},
    ]
    image = {"imagePath": "a.png", "imageHeight": 30, "imageWidth": 40, "shapes": shapes}
    (tmp_path / "labelme/a.json").write_text(json.dumps(image))
    source = Source(tmp_path / "labelme", "labelme", images=tmp_path / "labelme")
    group, box = convert(source, tmp_path / "o.json", "coco").image_set.images[0].objects
    assert group.box == (1, 2, 25, 7) and box.shape is None
    rle = group.rle((30, 40))
    assert pycocotools.mask.area(rle) == pytest.approx(14 + 42, abs=6)
    notes = convert(source, tmp_path / "yolo", "yolo", placing="copy").image_set.notes
    lines = (tmp_path / "yolo/labels/train/a.txt").read_text().splitlines()
    assert len(lines[1].split()) == 9
    assert notes["boxes beside polygons became polygons of four corners"] == 1
    convert(source, tmp_path / "voc", "voc")
    assert len([*(tmp_path / "voc").rglob("*.png")]) == 2
    (tmp_path / "labelme/a.json").write_text(json.dumps(image | {"shapes": shapes[2:]}))
    convert(source, tmp_path / "voc", "voc")
    assert not [*(tmp_path / "voc").rglob("*.png")]
    (tmp_path / "labelme/a.json").write_text(
        json.dumps(image | {"shapes": [shapes[2] | {"label": "a\x08"}]})
    )
    for to, out in (("voc", "v"), ("cvat", "c.xml")):
        with pytest.raises(UserError, match="which XML cannot hold"):
            convert(source, tmp_path / out, to)  # type: ignore[arg-type]


VOC = (
    "<annotation><size><width>40</width><height>30</height></size><object>{}</object></annotation>"
)
CVAT = '<annotations><image name="a.png" width="40" height="30">{}</image></annotations>'
LABELME = '{{"imagePath": "a.png", "imageHeight": 30, "imageWidth": 40, "shapes": [{}]}}'


@pytest.mark.parametrize(
    ("kind", "name", "text", "said"),
    [
        ("voc", "Annotations/a.xml", VOC.format("<name>x</name>"), "a.xml: object 1 has no bndbox"),
        ("voc", "Annotations/a.xml", "<annotation>", "a.xml is no XML file"),
        ("cvat", "a.xml", CVAT.format('<polygon label="x" points="1,2;3,4"/>'), "polygon 1 is a"),
        ("cvat", "a.xml", CVAT.format('<box label="x" xtl="1"/>'), "box 1 has no ytl"),
        ("cvat", "a.xml", CVAT.format('<mask label="x" rle="1,a"/>'), "mask 1 has no left"),
        ("labelme", "a.json", LABELME.format('{"label": "x", "points": [[1, 2]]}'), "shape 1 of 1"),
        ("labelme", "a.json", LABELME.format('{"points": [[1, 2]]}'), "shape 1 of 1 has no label"),
        ("labelme", "a.json", '{"shapes": [', "is not a JSON file"),
        ("yolo", "labels/a.txt", "0 0.1 0.2 0.3\n", "a.txt, line 1 has 3 numbers"),
        ("yolo", "labels/a.txt", "\n2 .1 .2 .3 .4", "line 2 has class 2, data.yaml has 1"),
        ("yolo", "labels/a.txt", "0 .1 b .3 .4", "line 1 is not a class and its coordinates"),
        ("yolo", "data.yaml", "names: {0: a, 2: b}", "`names` must be different classes"),
        ("via", "a.json", '{"a": {"filename": "b.png", "regions": []}}', "there is no image"),
        ("png", "objects.json", '{"classes": []}', "KeyError 'images'"),
        ("coco", "a.json", '{"images": []}', "no list of categories"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, kind: Any, name: str, text: str, said: str
) -> None:
    if kind == "yolo":
        (tmp_path / "images").mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / "images/a.png")
        (tmp_path / "data.yaml").write_text("names: [a]\ntrain: images\n")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    source = file if kind in ("cvat", "via", "coco") else tmp_path
    with pytest.raises(UserError) as caught:
        convert(Source(source, kind), tmp_path / "out.json", "coco")
    assert said in str(caught.value) and "\n" not in str(caught.value)
