"""COCO's format: one json file for all images."""

import json
from pathlib import Path
from typing import Any

import pycocotools.mask

from mrcnn_lightning.data.coco_sets import read_content
from mrcnn_lightning.data.formats.image_set import ImageSet, LabeledImage, LabeledObject
from mrcnn_lightning.data.segmentations import read_segmentation


def read_coco(file: Path) -> ImageSet:
    """A COCO-format file; its classes are in the order of their ids.

    Raises:
        UserError: see `pack_coco_json`.
    """
    content = read_content(file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = {category["id"]: category["name"] for category in categories}
    images = {
        image["id"]: LabeledImage(image["file_name"], int(image["width"]), int(image["height"]))
        for image in content["images"]
    }
    found = ImageSet(list(names.values()), list(images.values()))
    for annotation in content["annotations"]:
        image, box = images[annotation["image_id"]], annotation["bbox"]
        shape = read_segmentation(annotation.get("segmentation"), image.size)
        if box[2] <= 0 or box[3] <= 0 or shape == []:
            found.notes["objects without an area are left out"] += 1
            continue
        image.objects.append(
            LabeledObject(
                names[annotation["category_id"]],
                (box[0], box[1], box[2], box[3]),
                shape,
                bool(annotation.get("iscrowd", 0)),
            )
        )
    return found


def write_coco(image_set: ImageSet, file: Path) -> None:
    """A COCO-format file whose images, objects and classes are numbered from 1."""
    labels = {name: label for label, name in enumerate(image_set.class_names, start=1)}
    numbers = {id(image): number for number, image in enumerate(image_set.images, start=1)}
    content = {
        "images": [
            {
                "id": number,
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
            }
            for number, image in enumerate(image_set.images, start=1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": numbers[id(image)],
                "category_id": labels[labeled.class_name],
                **_extent(labeled, image.size),
            }
            for number, (image, labeled) in enumerate(image_set.objects(), start=1)
        ],
        "categories": [{"id": label, "name": name} for name, label in labels.items()],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _extent(labeled: LabeledObject, size: tuple[int, int]) -> dict[str, Any]:
    rle = labeled.rle(size)
    area = labeled.box[2] * labeled.box[3] if rle is None else pycocotools.mask.area(rle)
    extent = {"bbox": labeled.box, "area": float(area), "iscrowd": int(labeled.is_crowd)}
    if isinstance(labeled.shape, bytes):
        return extent | {
            "segmentation": {"size": list(size), "counts": labeled.shape.decode("ascii")}
        }
    return extent if labeled.shape is None else extent | {"segmentation": labeled.shape}
