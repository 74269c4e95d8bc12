"""CVAT's format: XML 1.1 "for images", one file for all.

P points of a polygon; h and w of a mask's crop.
"""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from mrcnn_lightning.data.formats.image_set import (
    ImageSet,
    LabeledImage,
    LabeledObject,
    Mask,
    box_object,
    class_names_of,
    crop_of,
    ellipse,
    mask_object,
    polygon_object,
    require_xml,
)
from mrcnn_lightning.user_error import UserError

_WITHOUT_AREA = {"polyline", "points", "cuboid", "skeleton"}


def read_cvat(file: Path) -> ImageSet:
    """An XML file; polygons of an image with one `group_id` and label are one object.

    Polygons, boxes, ellipses and masks are read; points and lines are left out, which have no area.
    A shape with the attribute `is_crowd` true is a crowd.

    Raises:
        UserError: names the file, the image and the shape that is wrong.
    """
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"{file} is no XML file: {error}") from error
    if root.tag != "annotations" or root.find("track") is not None:
        raise UserError(f'{file} is not CVAT\'s: export it as "CVAT for images 1.1"')
    found = ImageSet([], [])
    for element in root.iter("image"):
        found.images.append(_image(element, file, found))
    if not found.images:
        raise UserError(f"{file} has no images")
    listed = [text for each in root.iter("label") if (text := each.findtext("name"))]
    names = list(dict.fromkeys(listed))
    present = class_names_of(found.images)
    found.class_names = [*names, *(name for name in present if name not in names)]
    return found


def write_cvat(image_set: ImageSet, file: Path) -> None:
    """An XML file; polygons stay polygons, run lengths become masks."""
    require_xml(image_set)
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    for name in image_set.class_names:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        attribute = SubElement(SubElement(label, "attributes"), "attribute")
        for key, value in {
            "name": "is_crowd",
            "mutable": "False",
            "input_type": "checkbox",
            "default_value": "false",
            "values": "false",
        }.items():
            SubElement(attribute, key).text = value
    for number, image in enumerate(image_set.images):
        size = {"width": str(image.width), "height": str(image.height)}
        names = {"id": str(number), "name": image.file_name}
        element = SubElement(root, "image", names | size)
        for group, labeled in enumerate(image.objects, start=1):
            _write(labeled, image, element, group)
    ElementTree.indent(root)
    file.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)


def _image(element: Element, file: Path, found: ImageSet) -> LabeledImage:
    name = element.get("name", "")
    try:
        image = LabeledImage(name, int(element.attrib["width"]), int(element.attrib["height"]))
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: image {name!r} has no whole width and height") from error
    groups: dict[object, list[LabeledObject]] = {}
    for number, shape in enumerate(element, start=1):
        if shape.tag in _WITHOUT_AREA:
            found.notes["points and lines are left out, which have no area"] += 1
            continue
        if shape.tag not in _READERS:
            continue  # a tag of the whole image, say
        place = f"{file}: image {name!r}, {shape.tag} {number}"
        try:
            labeled = _READERS[shape.tag](shape, image)
        except KeyError as error:
            raise UserError(f"{place} has no {error.args[0]}: export it anew") from error
        except ValueError as error:
            said = str(error) if isinstance(error, UserError) else f"cannot be read: {error}"
            raise UserError(f"{place} {said}") from error
        if labeled is None:
            found.notes["masks without a pixel are left out"] += 1
            continue
        group = shape.get("group_id", "0")
        is_grouped = group != "0" and shape.tag == "polygon"
        key = (labeled.class_name, group) if is_grouped else number
        groups.setdefault(key, []).append(labeled)
    for parts in groups.values():
        image.objects.append(parts[0] if len(parts) == 1 else _merged(parts))
    return image


def _merged(parts: list[LabeledObject]) -> LabeledObject:
    polygons = [polygon for part in parts if isinstance(part.shape, list) for polygon in part.shape]
    points = [np.array(polygon).reshape(-1, 2) for polygon in polygons]
    return polygon_object(parts[0].class_name, points, is_crowd=parts[0].is_crowd)


def _is_crowd(shape: Element) -> bool:
    return any(
        attribute.get("name") in ("is_crowd", "iscrowd") and attribute.text in ("true", "1", "True")
        for attribute in shape.iter("attribute")
    )


def _polygon(shape: Element, image: LabeledImage) -> LabeledObject:
    pairs = [pair.split(",") for pair in shape.attrib["points"].split(";")]
    points = np.array(pairs, dtype=np.float64)
    return polygon_object(shape.attrib["label"], [points], is_crowd=_is_crowd(shape))


def _box(shape: Element, image: LabeledImage) -> LabeledObject:
    x1, y1, x2, y2 = (float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
    label, turned = shape.attrib["label"], float(shape.get("rotation", 0))
    if turned:
        corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        center, angle = corners.mean(axis=0), np.deg2rad(turned)
        cos, sin = np.cos(angle), np.sin(angle)
        points = center + (corners - center) @ np.array([[cos, sin], [-sin, cos]])
        return polygon_object(label, [points], is_crowd=_is_crowd(shape))
    return box_object(label, x1, y1, x2, y2, is_crowd=_is_crowd(shape))


def _ellipse(shape: Element, image: LabeledImage) -> LabeledObject:
    cx, cy, rx, ry = (float(shape.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
    turned = np.deg2rad(float(shape.get("rotation", 0)))
    points = ellipse(np.array([cx, cy]), np.array([rx, ry]), turned=float(turned))
    return polygon_object(shape.attrib["label"], [points], is_crowd=_is_crowd(shape))


def _mask(shape: Element, image: LabeledImage) -> LabeledObject | None:
    left, top, width, height = (
        int(shape.attrib[key]) for key in ("left", "top", "width", "height")
    )
    counts = np.array(shape.attrib["rle"].split(","), dtype=np.int64)
    if (counts < 0).any() or counts.sum() != width * height:
        raise UserError("has run lengths whose sum is not its area: export it anew")
    canvas: Mask = np.zeros(image.size, dtype=np.uint8)
    if min(left, top) < 0 or left + width > image.width or top + height > image.height:
        raise UserError("reaches out of its image: draw it anew")
    values = np.arange(len(counts)) % 2  # from background on, row by row
    canvas[top : top + height, left : left + width] = values.repeat(counts).reshape(height, width)
    return mask_object(shape.attrib["label"], canvas, is_crowd=_is_crowd(shape))


_READERS = {"polygon": _polygon, "box": _box, "ellipse": _ellipse, "mask": _mask}


def _write(labeled: LabeledObject, image: LabeledImage, parent: Element, group: int) -> None:
    common = {"label": labeled.class_name, "source": "manual", "occluded": "0"}
    x, y, width, height = labeled.box
    if labeled.shape is None:
        corners = {"xtl": x, "ytl": y, "xbr": x + width, "ybr": y + height}
        texts = {key: repr(float(value)) for key, value in corners.items()}
        elements = [SubElement(parent, "box", common | texts)]
    elif isinstance(labeled.shape, bytes):
        elements = [SubElement(parent, "mask", common | _run_lengths(labeled, image))]
    else:
        common |= {"group_id": str(group)} if len(labeled.shape) > 1 else {}
        elements = []
        for polygon in labeled.shape:
            pairs = np.reshape(polygon, (-1, 2)).tolist()
            points = ";".join(f"{x!r},{y!r}" for x, y in pairs)
            elements.append(SubElement(parent, "polygon", common | {"points": points}))
    for element in elements:
        SubElement(element, "attribute", name="is_crowd").text = str(labeled.is_crowd).lower()


def _run_lengths(labeled: LabeledObject, image: LabeledImage) -> dict[str, str]:
    """A mask's crop (h, w), row by row, beginning with the number of zeros."""
    mask = labeled.mask(image.size)
    assert mask is not None
    top, left, crop = crop_of(mask)
    flat = np.concatenate([[0], crop.ravel(), [2]])
    changes = np.flatnonzero(np.diff(flat))
    lengths = np.diff(changes, prepend=0)
    height, width = crop.shape
    numbers = {"left": left, "top": top, "width": width, "height": height}
    texts = {key: str(value) for key, value in numbers.items()}
    return {"rle": ", ".join(map(str, lengths.tolist()))} | texts
