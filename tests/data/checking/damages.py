"""Every kind of damage that a data set may have, done to one that is right."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from PIL import Image

Damage = Callable[[dict[str, Any], Path], None]
DAMAGES: list[tuple[str, Damage]] = []  # the kind of fault that it is, and what does it


def damage(kind: str) -> Callable[[Damage], Damage]:
    def add(function: Damage) -> Damage:
        DAMAGES.append((kind, function))
        return function

    return add


def write_set(root: Path, num_images: int, folder: Path, max_side: int = 128) -> dict[str, Any]:
    """A part of coco_tiny, in small: its images into a folder, and what its file says of them."""
    content = json.loads((root / "annotations/instances_train2017.json").read_text())
    folder.mkdir()
    images = sorted(content["images"], key=lambda image: image["id"])[:num_images]
    factors = {}
    for image in images:
        with Image.open(root / "train2017" / image["file_name"]) as file:
            small = file.convert("RGB")
        small.thumbnail((max_side, max_side))
        factors[image["id"]] = small.width / image["width"], small.height / image["height"]
        image["width"], image["height"] = small.size
        small.save(folder / image["file_name"], quality=95)
    annotations = []
    for annotation in content["annotations"]:
        if annotation["image_id"] in factors and not annotation["iscrowd"]:
            x, y = factors[annotation["image_id"]]
            if min(annotation["bbox"][2] * x, annotation["bbox"][3] * y) < 3:
                continue
            annotation["area"] *= x * y
            annotation["bbox"] = [v * (x, y)[i % 2] for i, v in enumerate(annotation["bbox"])]
            annotation["segmentation"] = [
                [v * (x, y)[i % 2] for i, v in enumerate(polygon)]
                for polygon in annotation["segmentation"]
            ]
            annotations.append(annotation)
    used = {annotation["category_id"] for annotation in annotations}
    categories = [each for each in content["categories"] if each["id"] in used]
    return {"images": images, "annotations": annotations, "categories": categories}


def sizes(content: dict[str, Any]) -> dict[Any, tuple[int, int]]:
    return {image["id"]: (image["height"], image["width"]) for image in content["images"]}


def as_rle(content: dict[str, Any], annotation: dict[str, Any]) -> dict[str, Any]:
    size = sizes(content)[annotation["image_id"]]
    rles = pycocotools.mask.frPyObjects(annotation["segmentation"], *size)
    return {"size": list(size), "counts": pycocotools.mask.merge(rles)["counts"].decode()}


def set_key(part: str, key: str, value: Any, row: int = 0) -> Damage:
    def change(content: dict[str, Any], folder: Path) -> None:
        content[part][row][key] = value

    return change


def delete_key(part: str, key: str) -> Damage:
    def change(content: dict[str, Any], folder: Path) -> None:
        del content[part][0][key]

    return change


def every(key: str, function: Callable[[Any], Any]) -> Damage:
    def change(content: dict[str, Any], folder: Path) -> None:
        for annotation in content["annotations"]:
            annotation[key] = function(annotation[key])

    return change


def resaved(function: Callable[[Image.Image, Path], None]) -> Damage:
    """The first image's file written anew."""

    def change(content: dict[str, Any], folder: Path) -> None:
        path = folder / content["images"][0]["file_name"]
        with Image.open(path) as file:
            image = file.copy()
        function(image, path)

    return change


resized = resaved(lambda image, path: image.reduce(2).save(path))
DAMAGES += [
    ("category-id", set_key("categories", "id", "one")),
    ("category-id", set_key("categories", "id", 1.5)),
    ("category-id", delete_key("categories", "id")),
    ("category-name", delete_key("categories", "name")),
    ("category-name", set_key("categories", "name", 7)),
    ("image-id", set_key("images", "id", None)),
    ("image-id", set_key("images", "id", -3)),
    ("image-id", set_key("images", "id", 0.5)),
    ("image-missing", delete_key("images", "file_name")),  # then its coco_url names it
    ("file-name", set_key("images", "file_name", 12)),
    ("file-name", set_key("images", "file_name", "\ud800.jpg")),
    ("image-size", delete_key("images", "width")),
    ("image-size", set_key("images", "height", 0)),
    ("image-size", set_key("images", "height", "480")),
    ("image-missing", set_key("images", "file_name", "elsewhere.jpg")),
    ("annotation-id", delete_key("annotations", "id")),
    ("annotation-id", set_key("annotations", "id", "first")),
    ("annotation-id", set_key("annotations", "id", 1.5)),
    ("annotation-id-0", set_key("annotations", "id", 0)),
    ("image-id-unknown", set_key("annotations", "image_id", 123456)),
    ("image-id-unknown", set_key("annotations", "image_id", [1])),
    ("category-id-unknown", set_key("annotations", "category_id", 123456)),
    ("category-id-unknown", delete_key("annotations", "category_id")),
    ("id-as-text", every("image_id", str)),
    ("id-as-text", every("category_id", str)),
    ("box", delete_key("annotations", "bbox")),
    ("box", set_key("annotations", "bbox", [1, 2, 3])),
    ("box", set_key("annotations", "bbox", [1, 2, "3", 4])),
    ("box", set_key("annotations", "bbox", [1, 2, float("nan"), 4])),
    ("box", set_key("annotations", "bbox", [1, 2, float("inf"), 4])),
    ("box-empty", set_key("annotations", "bbox", [10, 10, 0, 20])),
    ("box-empty", set_key("annotations", "bbox", [30, 30, -20, -20])),
    ("box-outside", set_key("annotations", "bbox", [1e4, 10, 20, 20])),
    ("box-leaves", set_key("annotations", "bbox", [-20, -20, 1e4, 1e4])),
    ("box-not-its-mask", set_key("annotations", "bbox", [0, 0, 4, 4])),
    ("crowd", set_key("annotations", "iscrowd", "no")),
    ("crowd", set_key("annotations", "iscrowd", 2)),
    ("crowd", set_key("annotations", "iscrowd", None)),
    ("only-crowds", every("iscrowd", lambda _: 1)),
    ("area", set_key("annotations", "area", -1)),
    ("area", set_key("annotations", "area", "large")),
    ("mask-missing", delete_key("annotations", "segmentation")),
    ("mask-missing", set_key("annotations", "segmentation", [])),
    ("no-masks", every("segmentation", lambda _: [])),
    ("segmentation", set_key("annotations", "segmentation", "a mask")),
    ("polygon-layout", every("segmentation", lambda polygons: polygons[0])),
    (
        "polygon-layout",
        every("segmentation", lambda s: [[p[i : i + 2] for i in range(0, len(p), 2)] for p in s]),
    ),
    ("polygon-numbers", set_key("annotations", "segmentation", [[1, 1, 9, "x", 9, 9]])),
    ("polygon-numbers", set_key("annotations", "segmentation", [[1, 1, 9, float("nan"), 9, 9]])),
    ("polygon-odd", set_key("annotations", "segmentation", [[1, 1, 30, 1, 30, 30, 1]])),
    ("polygon-short", set_key("annotations", "segmentation", [[1, 1, 30, 30]])),
    ("polygon-crosses", set_key("annotations", "segmentation", [[1, 1, 40, 40, 40, 1, 1, 40]])),
    ("mask-leaves", set_key("annotations", "segmentation", [[-50, 1, 900, 1, 900, 900, -50, 900]])),
    ("mask-empty", set_key("annotations", "segmentation", [[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]])),
    ("rle-broken", set_key("annotations", "segmentation", {"size": "large", "counts": []})),
    ("image-broken", resaved(lambda _, path: path.write_bytes(b"no image"))),
    ("image-broken", resaved(lambda _, path: path.write_bytes(b""))),
    ("image-truncated", resaved(lambda _, path: path.write_bytes(path.read_bytes()[:-2000]))),
    ("image-size-differs", resaved(lambda image, path: image.crop((0, 0, 60, 33)).save(path))),
    ("image-size-differs", resized),
    ("image-alpha", resaved(lambda image, path: image.convert("RGBA").save(path, "PNG"))),
    ("image-cmyk", resaved(lambda image, path: image.convert("CMYK").save(path))),
    ("image-deep", resaved(lambda image, path: image.convert("I;16").save(path, "PNG"))),
    (
        "image-animated",
        resaved(
            lambda image, path: image.save(
                path, "GIF", save_all=True, append_images=[image.rotate(9)]
            )
        ),
    ),
]


@damage("category-id-twice")
def _(content: dict[str, Any], folder: Path) -> None:
    content["categories"][1]["id"] = content["categories"][0]["id"]


@damage("category-name-twice")
def _(content: dict[str, Any], folder: Path) -> None:
    content["categories"][1]["name"] = content["categories"][0]["name"]


@damage("category-name-alike")
def _(content: dict[str, Any], folder: Path) -> None:
    content["categories"][1]["name"] = content["categories"][0]["name"].upper() + " "


@damage("class-empty")
def _(content: dict[str, Any], folder: Path) -> None:
    content["categories"].append({"id": 999, "name": "unicorn"})


@damage("image-id-twice")
def _(content: dict[str, Any], folder: Path) -> None:
    content["images"].append(copy.deepcopy(content["images"][0]))


@damage("image-id-twice")
def _(content: dict[str, Any], folder: Path) -> None:
    content["images"][1]["id"] = content["images"][0]["id"]


@damage("file-name-twice")
def _(content: dict[str, Any], folder: Path) -> None:
    content["images"].append({**content["images"][0], "id": 999})
    content["annotations"][0]["image_id"] = 999
    content["images"][-1] |= {"width": content["images"][0]["width"]}


@damage("image-missing")
def all_in_another_folder(content: dict[str, Any], folder: Path) -> None:
    for image in content["images"]:
        image["file_name"] = "C:\\photos\\" + image["file_name"].upper()


@damage("image-size-differs")
def swapped_sides(content: dict[str, Any], folder: Path) -> None:
    image = next(each for each in content["images"] if each["width"] != each["height"])
    image["width"], image["height"] = image["height"], image["width"]


@damage("image-size")
def without_sides(content: dict[str, Any], folder: Path) -> None:
    for image in content["images"][:2]:
        image["width"], image["height"] = 0, 0


@damage("image-turned")
def _(content: dict[str, Any], folder: Path) -> None:
    path = folder / content["images"][0]["file_name"]
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)


@damage("image-on-its-side")
def _(content: dict[str, Any], folder: Path) -> None:
    image = next(each for each in content["images"] if each["width"] != each["height"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / image["file_name"]).save(folder / image["file_name"], exif=exif)


@damage("image-unnamed")
def _(content: dict[str, Any], folder: Path) -> None:
    Image.new("RGB", (20, 20)).save(folder / "extra.png")


@damage("image-empty")
def _(content: dict[str, Any], folder: Path) -> None:
    Image.new("RGB", (60, 50)).save(folder / "extra.png")
    content["images"].append({"id": 999, "file_name": "extra.png", "width": 60, "height": 50})


@damage("copies")
def _(content: dict[str, Any], folder: Path) -> None:
    first = content["images"][0]
    shutil.copy(folder / first["file_name"], folder / "copy.jpg")
    content["images"].append({**first, "id": 999, "file_name": "copy.jpg"})


@damage("annotation-id-twice")
def _(content: dict[str, Any], folder: Path) -> None:
    content["annotations"][1]["id"] = content["annotations"][0]["id"]


@damage("duplicate")
def _(content: dict[str, Any], folder: Path) -> None:
    content["annotations"].append({**content["annotations"][0], "id": 99999})


def with_boxes(function: Callable[[list[float], tuple[int, int]], list[float]]) -> Damage:
    def change(content: dict[str, Any], folder: Path) -> None:
        of_images = sizes(content)
        for each in content["annotations"]:
            each["bbox"] = function(each["bbox"], of_images[each["image_id"]])

    return change


def without_masks(change: Damage) -> Damage:
    def both(content: dict[str, Any], folder: Path) -> None:
        every("segmentation", lambda _: [])(content, folder)
        change(content, folder)

    return both


corners = with_boxes(lambda b, _: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
centred = with_boxes(lambda b, _: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]])
relative = with_boxes(lambda b, s: [b[0] / s[1], b[1] / s[0], b[2] / s[1], b[3] / s[0]])


def yolo(content: dict[str, Any], folder: Path) -> None:
    centred(content, folder)
    relative(content, folder)


DAMAGES += [
    ("boxes-corners", corners),
    ("boxes-corners", without_masks(corners)),
    ("boxes-centred", centred),
    ("boxes-centred", without_masks(centred)),
    ("boxes-relative", relative),
    ("boxes-relative", without_masks(relative)),
    ("boxes-relative", yolo),
]


def rle(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Damage:
    def both(content: dict[str, Any], folder: Path) -> None:
        annotation = content["annotations"][0]
        annotation["segmentation"] = as_rle(content, annotation)
        change(annotation["segmentation"], annotation)

    return both


def empty_rle(mask: dict[str, Any], annotation: dict[str, Any]) -> None:
    zeros = np.zeros(mask["size"], dtype=np.uint8, order="F")
    mask["counts"] = pycocotools.mask.encode(zeros)["counts"].decode()


DAMAGES += [
    ("rle-size", rle(lambda mask, _: mask.update(size=mask["size"][::-1]))),
    ("rle-size", rle(lambda mask, _: mask.update(size=[7, 7]))),
    ("rle-broken", rle(lambda mask, _: mask.update(counts=mask["counts"][:-3]))),
    ("rle-broken", rle(lambda mask, _: mask.update(counts=[1, 2, 3]))),
    ("rle-broken", rle(lambda mask, _: mask.update(counts=[-5, 2, 3]))),
    ("rle-broken", rle(lambda mask, _: mask.pop("counts"))),
    ("mask-empty", rle(empty_rle)),
]
# These have no repair: one clear sentence says what to do.
BEYOND_REPAIR: list[tuple[str, Callable[[str], str]]] = [
    ("not-coco", lambda text: text[: len(text) // 2]),
    ("not-coco", lambda text: ""),
    ("not-coco", lambda text: "[1, 2]"),
    ("not-coco", lambda text: text.replace('"images"', '"pictures"')),
    ("not-coco", lambda text: text.replace('"categories": [', '"categories": [3, ')),
    ("no-images", lambda text: json.dumps(json.loads(text) | {"images": []})),
    ("no-categories", lambda text: json.dumps(json.loads(text) | {"categories": []})),
    ("no-annotations", lambda text: json.dumps(json.loads(text) | {"annotations": None})),
]
