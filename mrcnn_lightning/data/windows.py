"""Large images as sets of windows, each an image of its own with the objects in it.

N windows, G objects of an image.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycocotools.mask
import torch
from filelock import FileLock
from torch import Tensor

from mrcnn_lightning.data.annotations import Annotations, Objects
from mrcnn_lightning.data.bands import Window
from mrcnn_lightning.data.object_masks import ObjectMask, masks_of, outline_boxes, pixels_at
from mrcnn_lightning.data.segmentations import encode_polygons
from mrcnn_lightning.results.rle import encode_crop
from mrcnn_lightning.user_error import UserError

# Raised when windows of before are no longer what they would be now.
_FORMAT = 1
# Of a pixel, that float32 has in large images.
_DECIMALS = 3


@dataclass(frozen=True)
class Cut:
    """The windows of a set's images."""

    annotations: Annotations  # of N windows, numbered from 1
    places: Tensor  # (N, 4) top, left, height, width
    whole_sizes: Tensor  # (N, 2) height, width of the file's image


class Windows:
    """A grid of overlapping windows over each image; a small image is one window.

    An object that a window cuts stays in it with what is left: its box, its area and its mask. It
    goes if less of its box than a share is in the window; crowds stay.

    Args:
        size: of a window, in pixels a side.
        overlap: of neighbours, in pixels; objects up to this size are whole in one of them.
        min_visible: the share of an object's box that keeps it, 0 to 1.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(self, *, size: int, overlap: int, min_visible: float) -> None:
        if not isinstance(size, int) or not isinstance(overlap, int) or not 0 <= overlap < size:
            raise UserError(
                f"data.windows.size={size} data.windows.overlap={overlap}: a window has a "
                "size in whole pixels, and overlaps by less than that"
            )
        if not 0 <= min_visible <= 1:
            raise UserError(f"data.windows.min_visible={min_visible} is not between 0 and 1")
        self.size = size
        self.overlap = overlap
        self.min_visible = min_visible

    def places(self, height: int, width: int) -> list[Window]:
        """The windows of an image, row by row; the last ones end where it ends."""
        return [
            (top, left, min(self.size, height), min(self.size, width))
            for top in self._starts(height)
            for left in self._starts(width)
        ]

    def _starts(self, side: int) -> list[int]:
        last = max(0, side - self.size)
        return [*range(0, last, self.size - self.overlap), last]

    def cut(self, annotations: Annotations, cache_dir: str) -> Cut:
        """The windows of all images, with their objects; cut once and kept in a cache.

        Args:
            annotations: of the whole images.
            cache_dir: for the windows' annotations.

        Raises:
            UserError: the cache cannot be written to.
        """
        sizes = annotations.image_sizes.tolist()
        places = [(size, place) for size in sizes for place in self.places(*size)]
        settings = f"{self.size}_{self.overlap}_{self.min_visible:g}"
        file = (
            Path(cache_dir).expanduser()
            / f"windows_{annotations.fingerprint}_{settings}_v{_FORMAT}.json"
        )
        try:
            with FileLock(file.with_suffix(".lock")):
                if not file.exists():
                    unfinished = file.with_suffix(".unfinished")
                    unfinished.write_text(json.dumps(self._content(annotations)))
                    unfinished.replace(file)
        except OSError as error:
            raise UserError(
                f"data.cache_dir={cache_dir} cannot be written to, give another: {error}"
            ) from error
        return Cut(
            annotations=Annotations.load(file, cache_dir=cache_dir),
            places=torch.tensor([place for _, place in places]),
            whole_sizes=torch.tensor([size for size, _ in places]),
        )

    def _content(self, annotations: Annotations) -> dict[str, Any]:
        """The windows in COCO's format; each has the name of its whole image's file."""
        images: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        for index, (height, width) in enumerate(annotations.image_sizes.tolist()):
            name, objects = annotations.file_name(index), annotations.objects(index)
            areas, masks = annotations.areas(index), masks_of(objects, (height, width))
            for place in self.places(height, width):
                image = {"file_name": name, "height": place[2], "width": place[3]}
                images.append({"id": len(images) + 1} | image)
                for number, entry in self._objects(objects, masks, place, (height, width)):
                    entry.setdefault("area", areas[number])
                    category = annotations.category_ids[int(objects.labels[number]) - 1]
                    own = {"id": len(entries) + 1, "image_id": len(images)}
                    entries.append(own | {"category_id": category} | entry)
        categories = [
            {"id": id_, "name": name}
            for id_, name in zip(annotations.category_ids, annotations.class_names, strict=True)
        ]
        return {"images": images, "annotations": entries, "categories": categories}

    def _objects(
        self, objects: Objects, masks: list[ObjectMask], place: Window, whole_size: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects of a window by their numbers, those that it cuts with areas of their own."""
        top, left, height, width = place
        origin = torch.tensor([left, top], dtype=torch.float32)
        boxes = objects.boxes - origin.repeat(2)
        limit = torch.tensor([width, height], dtype=torch.float32).repeat(2)
        cut = boxes.clamp(min=0).minimum(limit)
        shares = _areas(cut) / _areas(boxes).clamp(min=1e-6)
        kept = (_areas(cut) > 0) & (objects.crowd | (shares >= self.min_visible))
        for number in torch.nonzero(kept)[:, 0].tolist():
            if shares[number] > 1 - 1e-6:
                entry = _whole(_moved(masks[number], origin), boxes[number], place)
            else:
                entry = _part(masks[number], cut[number], place, whole_size)
            if entry is not None:
                yield number, entry | {"iscrowd": int(objects.crowd[number])}


def _areas(boxes: Tensor) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    return sides[:, 0] * sides[:, 1]


def _moved(mask: ObjectMask, origin: Tensor) -> ObjectMask:
    return ObjectMask([points - origin for points in mask.points], mask.pixels)


def _whole(mask: ObjectMask, box: Tensor, place: Window) -> dict[str, Any] | None:
    """An object of which a window shows all; None where its mask is empty."""
    if mask.pixels is not None:
        return _of_pixels(mask, box, place)
    polygons = [_decimal(points).tolist() for points in mask.points]
    return {"bbox": _x_y_width_height(box)} | ({"segmentation": polygons} if polygons else {})


def _part(
    mask: ObjectMask, box: Tensor, place: Window, whole_size: Sequence[int]
) -> dict[str, Any] | None:
    """An object of which a window shows a part; None where it shows nothing of its mask.

    A part of polygons is the pixels that they cover in the whole image, so that it is scored as
    they are, with the box of their outline.
    """
    origin = torch.tensor([place[1], place[0]], dtype=torch.float32)
    if not mask.points:
        return {"bbox": _x_y_width_height(box), "area": float(_areas(box[None]))}
    (box,) = outline_boxes([_moved(mask, origin)], place[2:])
    if mask.pixels is None:
        mask = _pixels_of_polygons(mask, whole_size)
    entry = _of_pixels(_moved(mask, origin), box, place)
    if entry is None or not _areas(box[None]) > 0:
        return None
    return entry | {"area": float(pycocotools.mask.area(entry["segmentation"]))}


def _pixels_of_polygons(mask: ObjectMask, size: Sequence[int]) -> ObjectMask:
    """What polygons cover of an image of `size`, in a crop: whole pixels further left and up."""
    points = torch.cat(mask.points)
    corner = points.amin(0).floor().clamp(min=0)
    limit = torch.tensor([size[1], size[0]], dtype=torch.float32)
    sides = (points.amax(0).ceil().minimum(limit) - corner).clamp(min=1)
    polygons = [_decimal(each - corner).numpy() for each in mask.points]
    width, height = (int(side) for side in sides.tolist())
    pixels = pycocotools.mask.decode(encode_polygons(polygons, (height, width)))
    left, top = (int(start) for start in corner.tolist())
    return pixels_at(torch.from_numpy(pixels), left=left, top=top)


def _decimal(points: Tensor) -> Tensor:
    """Points (P, 2) as (2 P,) float64 as a file has them, which float32 and moving had changed.

    pycocotools rounds to fifths of a pixel, and files' numbers often lie in the middle of two.
    """
    return points.double().flatten().round(decimals=_DECIMALS)


def _of_pixels(mask: ObjectMask, box: Tensor, place: Window) -> dict[str, Any] | None:
    """Run lengths of what a window shows of pixels, None if that is nothing."""
    assert mask.pixels is not None
    size = (place[2], place[3])
    left, top, right, bottom = (int(side) for side in mask.extent.tolist())
    rows = slice(max(0, -top), max(0, min(bottom, size[0]) - top))
    columns = slice(max(0, -left), max(0, min(right, size[1]) - left))
    pixels = mask.pixels[rows, columns].bool().numpy()
    if not pixels.any():
        return None
    counts = encode_crop(pixels, max(0, top), max(0, left), size).decode()
    return {
        "bbox": _x_y_width_height(box),
        "segmentation": {"size": list(size), "counts": counts},
    }


def _x_y_width_height(box: Tensor) -> list[float]:
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]
