"""PASCAL VOC's format: an XML file an image with boxes, and png files with its objects' pixels.

H and W of the image.
"""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from PIL import Image

from mrcnn_lightning.data.formats.image_set import (
    IMAGE_ENDINGS,
    ImageSet,
    LabeledImage,
    Mask,
    box_object,
    class_names_of,
    mask_object,
    read_text,
    read_values,
    require_xml,
    stems,
)
from mrcnn_lightning.user_error import UserError

# In the png files: nobody's pixel, and one that may be anybody's.
_BACKGROUND, _VOID = 0, 255
_MASKS = ("SegmentationObject", "SegmentationClass")
# A mask reaches out of its box by so many pixels at most, where both were drawn by hand.
_MARGIN = 8


def read_voc(folder: Path, *, part: str | None = None) -> ImageSet:
    """A folder with `Annotations/`, and `SegmentationObject/` where there are masks.

    The n-th object of an XML file has the pixels of the value n, as in VOC 2012. Boxes count pixels
    from 1 and hold their last one, as Detectron2 reads them. What is `difficult` becomes a crowd:
    evaluation leaves out both.

    Args:
        folder: of a year, as VOC2012.
        part: of the images, as `ImageSets/Main/PART.txt` (or `Segmentation/`) lists them.

    Raises:
        UserError: names the file and the object that is wrong.
    """
    annotations = folder / "Annotations"
    files = sorted(annotations.rglob("*.xml")) if part is None else _listed(folder, part)
    if not files:
        raise UserError(f"{annotations} has no XML files")
    found = ImageSet([], [])
    for file in files:
        stem = file.relative_to(annotations).with_suffix("")
        image = _image(file, stem)
        png = folder / "SegmentationObject" / f"{stem.as_posix()}.png"
        if png.exists():
            _add_masks(image, png, found)
        found.images.append(image)
    found.class_names = class_names_of(found.images)
    return found


def write_voc(image_set: ImageSet, out: Path, *, part: str | None = None) -> Path:
    """XML files, png files of the masks, and with a part its list in `ImageSets/Main/`.

    Boxes are rounded to whole pixels. A pixel belongs to one object: to the smallest that has it.

    Returns:
        The folder in which the images belong.
    """
    require_xml(image_set)
    by_stem = stems(image_set)
    labels = {name: label for label, name in enumerate(image_set.class_names, start=1)}
    for stem, image in by_stem.items():
        target = out / "Annotations" / f"{stem}.xml"
        target.parent.mkdir(parents=True, exist_ok=True)
        root = _xml(image)
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(target, encoding="utf-8")
        if any(labeled.shape is not None for labeled in image.objects):
            _write_masks(image, stem, out, labels, image_set)
        else:  # those of an earlier set would be read as this one's
            for kind in _MASKS:
                (out / kind / f"{stem}.png").unlink(missing_ok=True)
    if part is not None:
        listed = out / "ImageSets" / "Main" / f"{part}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{stem}\n" for stem in by_stem), encoding="utf-8")
    unused = set(labels) - set(class_names_of(image_set.images))
    if unused:
        image_set.notes["classes without an object are not kept by VOC's format"] += len(unused)
    return out / "JPEGImages"


def _listed(folder: Path, part: str) -> list[Path]:
    for kind in ("Main", "Segmentation"):
        file = folder / "ImageSets" / kind / f"{part}.txt"
        if file.exists():
            names = read_text(file).splitlines()
            files = [folder / "Annotations" / f"{n.strip()}.xml" for n in names if n.strip()]
            missing = [each for each in files if not each.exists()]
            if missing:
                raise UserError(f"{file} names {len(missing)} images without XML: {missing[0]}")
            return files
    raise UserError(f"there is no {folder / 'ImageSets' / 'Main' / f'{part}.txt'}, a part's list")


def _image(file: Path, stem: Path) -> LabeledImage:
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"{file} is no XML file: {error}") from error
    try:
        width, height = (
            int(float(root.findtext(f"size/{key}", ""))) for key in ("width", "height")
        )
    except ValueError as error:
        raise UserError(f"{file} has no size with a whole width and height") from error
    name = Path(root.findtext("filename") or "").name
    if Path(name).suffix.lower() not in IMAGE_ENDINGS:  # some programs leave it out
        name = f"{stem.name}.jpg"
    image = LabeledImage((stem.parent / name).as_posix(), width, height)
    for number, element in enumerate(root.iter("object"), start=1):
        place = f"{file}: object {number}"
        label = (element.findtext("name") or "").strip()
        if not label:
            raise UserError(f"{place} has no name")
        try:
            x1, y1, x2, y2 = (
                float(element.findtext(f"bndbox/{key}", ""))
                for key in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError as error:
            raise UserError(f"{place} has no bndbox of four numbers") from error
        is_difficult = element.findtext("difficult", "0").strip() == "1"
        try:
            labeled = box_object(label, x1 - 1, y1 - 1, x2, y2, is_crowd=is_difficult)
        except UserError as error:
            raise UserError(f"{place} {error}") from error
        image.objects.append(labeled)
    return image


def _add_masks(image: LabeledImage, png: Path, found: ImageSet) -> None:
    values = read_values(png, str(png))
    if values.shape != image.size:
        raise UserError(
            f"{png} is no palette png of {image.width} x {image.height} pixels, as its XML says"
        )
    highest = int(values[values != _VOID].max(initial=0))
    if highest > len(image.objects):
        raise UserError(f"{png} has an object {highest}, its XML has {len(image.objects)}")
    for number, labeled in enumerate(image.objects, start=1):
        masked = mask_object("", values == number, is_crowd=False)
        if masked is None:
            found.notes["objects have a box but no pixel of their own"] += 1
            continue
        x, y, width, height = labeled.box
        left, top, columns, rows = masked.box
        if min(left - x, top - y, x + width - left - columns, y + height - top - rows) < -_MARGIN:
            raise UserError(
                f"{png}: object {number} lies out of its box in the XML, so they are numbered in "
                "another order: number them alike, or move the folder away to get boxes alone"
            )
        labeled.shape = masked.shape


def _xml(image: LabeledImage) -> Element:
    root = Element("annotation")
    SubElement(root, "folder").text = "JPEGImages"
    SubElement(root, "filename").text = Path(image.file_name).name
    size = SubElement(root, "size")
    for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        SubElement(size, key).text = str(value)
    SubElement(root, "segmented").text = str(int(any(o.shape is not None for o in image.objects)))
    for labeled in image.objects:
        element = SubElement(root, "object")
        SubElement(element, "name").text = labeled.class_name
        SubElement(element, "pose").text = "Unspecified"
        SubElement(element, "truncated").text = "0"
        SubElement(element, "difficult").text = str(int(labeled.is_crowd))
        box = SubElement(element, "bndbox")
        x, y, width, height = labeled.box
        x1, y1 = round(x) + 1, round(y) + 1
        x2, y2 = max(x1, round(x + width)), max(y1, round(y + height))
        for key, value in (("xmin", x1), ("ymin", y1), ("xmax", x2), ("ymax", y2)):
            SubElement(box, key).text = str(value)
    return root


def _write_masks(
    image: LabeledImage, stem: str, out: Path, labels: dict[str, int], found: ImageSet
) -> None:
    if len(image.objects) >= _VOID:
        raise UserError(
            f"{image.file_name} has {len(image.objects)} objects, of which VOC's png files hold "
            "254: choose another format"
        )
    if len(labels) >= _VOID:
        raise UserError(f"{len(labels)} classes are more than the 254 that VOC's png files hold")
    objects: Mask = np.full(image.size, _BACKGROUND, dtype=np.uint8)
    classes = objects.copy()
    masks = [labeled.mask(image.size) for labeled in image.objects]
    areas = [0 if mask is None else int(mask.sum()) for mask in masks]
    for number in np.argsort(areas, kind="stable")[::-1].tolist():
        mask = masks[number]
        if mask is not None:
            objects[mask != 0] = number + 1
            classes[mask != 0] = labels[image.objects[number].class_name]
    kept = np.bincount(objects.ravel(), minlength=len(masks) + 1)[1:]
    lost = [area - int(left) for area, left in zip(areas, kept, strict=True)]
    found.notes["objects lost pixels to smaller ones that they overlap"] += sum(x > 0 for x in lost)
    for kind, values in zip(_MASKS, (objects, classes), strict=True):
        target = out / kind / f"{stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        file = Image.frombytes("P", (image.width, image.height), values.tobytes())
        file.putpalette(_palette())
        file.save(target)


def _palette() -> bytes:
    """VOC's colours: the bits of a value, spread over red, green and blue from the highest on."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for value in range(256):
        for bit in range(8):
            for channel in range(3):
                colours[value, channel] |= ((value >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.tobytes()
