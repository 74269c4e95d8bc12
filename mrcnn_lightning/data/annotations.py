"""Annotations that all workers and ranks of a machine share as one memory-mapped file.

N images, O objects of all images, G objects of one image, P points of a polygon.
"""

import hashlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from mrcnn_lightning.data.coco_json import pack_coco_json
from mrcnn_lightning.data.lvis import LISTS
from mrcnn_lightning.data.merged_sets import Classes, merged
from mrcnn_lightning.data.segmentations import encode_polygons
from mrcnn_lightning.user_error import UserError

# Raised when packed files of before can no longer be read.
_FORMAT = 3
# Images of which ground truth is made from one mapping of the file.
_PER_MAPPING = 5000
_NO_POINTS = np.zeros(6)
_log = logging.getLogger(__name__)


@dataclass
class Objects:
    """The objects of one image, in its own pixels."""

    boxes: Tensor  # (G, 4) float32
    labels: Tensor  # (G,) int64 in 1..K
    crowd: Tensor  # (G,) bool
    shapes: list[list[Tensor] | bytes]  # polygons (P, 2), or run lengths of the whole image


class Annotations:
    """A packed COCO-format file, which every process maps into its memory for itself.

    Args:
        packed_file: see `load`.
    """

    def __init__(self, packed_file: Path) -> None:
        self._file = packed_file
        self._packed = torch.load(packed_file, mmap=True, weights_only=True)
        self._arrays: dict[str, npt.NDArray[Any]] = {
            name: value.numpy() for name, value in self._packed.items() if isinstance(value, Tensor)
        }
        self.class_names: list[str] = self._packed["class_names"]
        self.category_ids: list[int] = self._packed["category_ids"]
        self.is_annotated: bool = self._packed["is_annotated"]
        self.without_mask: list[int] = self._packed["without_mask"]  # ids of annotations
        self.left_out: dict[str, int] = self._packed["left_out"]  # objects, by reason
        self.odd_areas: int = self._packed["odd_areas"]
        self.has_id_0: bool = self._packed["has_id_0"]
        # LVIS's classes have one of r, c and f each, and its images say which were looked for.
        self.frequencies: list[str] | None = self._packed.get("frequencies")
        self.image_ids: Tensor = self._packed["image_ids"]  # (N,)
        self.image_sizes: Tensor = self._packed["image_sizes"]  # (N, 2) height, width
        self.boxes: Tensor = self._packed["boxes"]  # (O, 4) float64 x, y, width, height
        self.labels: Tensor = self._packed["labels"]  # (O,) int64 in 1..K
        self.crowd: Tensor = self._packed["crowd"]  # (O,) bool

    def __reduce__(self) -> tuple[Any, ...]:
        return Annotations, (self._file,)

    @classmethod
    def load(cls, file: str | Path, *, cache_dir: str | Path) -> "Annotations":
        """The annotations of a COCO-format file, packed if it was not yet.

        Args:
            file: a json file; another content is packed anew.
            cache_dir: where packed files are kept; `~` is the home folder.

        Raises:
            UserError: see `pack_coco_json`, or the folder cannot be written to.
        """
        with Path(file).open("rb") as opened:
            digest = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16))
        return cls._packed_once(
            Path(file).stem, digest.hexdigest(), partial(pack_coco_json, file), cache_dir
        )

    @classmethod
    def merge(
        cls, parts: "Sequence[Annotations]", classes: Classes, *, cache_dir: str | Path
    ) -> "Annotations":
        """Several sets as one, packed if it was not yet.

        Args:
            parts: in the order of their images.
            classes: other names of classes, see `merged`.
            cache_dir: see `load`.

        Raises:
            UserError: see `merged`, or the folder cannot be written to.
        """
        content = repr([[part.fingerprint for part in parts], list(classes.items())])
        digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        packed = [part._packed for part in parts]
        return cls._packed_once("merged", digest, partial(merged, packed, classes), cache_dir)

    @classmethod
    def _packed_once(
        cls, name: str, digest: str, pack: Callable[[], dict[str, Any]], cache_dir: str | Path
    ) -> "Annotations":
        cache = Path(cache_dir).expanduser()
        # A file's name has at most 255 bytes, a character up to four.
        target = cache / f"{name[:40]}_{digest}_v{_FORMAT}.pt"
        packed = cls._opened(target)
        if packed is None:
            try:
                cache.mkdir(parents=True, exist_ok=True)
                with FileLock(target.with_suffix(".lock")):
                    packed = cls._opened(target)
                    if packed is None:
                        _write(pack(), target)
            except OSError as error:
                raise UserError(
                    f"data.cache_dir={cache_dir} cannot be written to, give another: {error}"
                ) from error
        return packed or cls(target)

    @classmethod
    def _opened(cls, target: Path) -> "Annotations | None":
        """A packed file, or None if there is none that is whole."""
        try:
            return cls(target)
        except OSError:
            return None
        except (EOFError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError):
            _log.warning("%s is damaged and is made anew", target)
            return None

    def sets(self) -> Tensor:
        """Which of the sets that were merged each image is of, from 0 on, (N,)."""
        ends = self._packed.get("set_ends", torch.tensor([len(self)]))
        return torch.searchsorted(ends, torch.arange(len(self)), right=True)

    @property
    def fingerprint(self) -> str:
        """The hash (BLAKE2b, 16 bytes) of the json file, which the packed file's name holds."""
        return self._file.stem.rsplit("_", 2)[1]

    def __len__(self) -> int:
        return len(self.image_ids)

    def num_objects(self) -> Tensor:
        """How many objects each image has, (N,)."""
        ends: Tensor = self._packed["object_ends"]
        return ends.diff(prepend=torch.zeros(1, dtype=torch.int64))

    def num_trainable(self) -> Tensor:
        """How many objects each image has, crowds aside, (N,)."""
        numbers = F.pad((~self.crowd).cumsum(0), (1, 0))  # (O + 1,)
        return numbers[self._packed["object_ends"]].diff(prepend=numbers[:1])

    def file_name(self, index: int) -> str:
        """The image's file, relative to the folder of images."""
        return self._bytes("name", index).decode()

    def objects(self, index: int) -> Objects:
        """The objects of an image."""
        chosen = self._range("object_ends", index)
        origins, sides = self.boxes[chosen].split(2, dim=1)
        return Objects(
            boxes=torch.cat([origins, origins + sides], dim=1).float(),
            labels=self.labels[chosen].clone(),
            crowd=self.crowd[chosen].clone(),
            shapes=[
                shape if isinstance(shape, bytes) else [torch.from_numpy(p).float() for p in shape]
                for shape in self._shapes(chosen)
            ],
        )

    def areas(self, index: int) -> list[float]:
        """The areas of an image's objects, as the file says them."""
        areas: list[float] = self._arrays["areas"][self._range("object_ends", index)].tolist()
        return areas

    def ground_truth(self, image_ids: Sequence[int], *, of_masks: bool) -> dict[str, Any]:
        """Images and their objects in COCO's format, with the file's own numbers in float64.

        Objects have boxes or else run lengths, not both: there may be a million. They are numbered
        from 1, since the evaluation takes an id of 0 for "no match".

        Args:
            image_ids: of the file.
            of_masks: whether masks are compared, not boxes.
        """
        numbers = {image_id: number for number, image_id in enumerate(self.image_ids.tolist())}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for first in range(0, len(image_ids), _PER_MAPPING):
            mapped = self._mapped_anew()
            for image_id in image_ids[first : first + _PER_MAPPING]:
                number = numbers[image_id]
                height, width = self.image_sizes[number].tolist()
                images.append({"id": image_id, "height": height, "width": width})
                images[-1] |= mapped._federation(number)
                annotations += mapped._true_objects(number, image_id, of_masks=of_masks)
        for count, annotation in enumerate(annotations, start=1):
            annotation["id"] = count
        categories: list[dict[str, Any]] = [
            {"id": category, "name": name}
            for category, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        for entry, frequency in zip(categories, self.frequencies or [], strict=False):
            entry["frequency"] = frequency
        return {"images": images, "annotations": annotations, "categories": categories}

    def _federation(self, index: int) -> dict[str, list[int]]:
        """What LVIS says of an image's classes, in its own words."""
        if self.frequencies is None:
            return {}
        return {
            key: self._arrays[f"{name}_ids"][self._range(f"{name}_ends", index)].tolist()
            for key, name in LISTS.items()
        }

    def _mapped_anew(self) -> "Annotations":
        """The same, without the memory that what was read of a mapped file counts as."""
        try:
            return Annotations(self._file)
        except OSError:  # somebody has emptied the cache meanwhile
            return self

    def _true_objects(
        self, index: int, image_id: int, *, of_masks: bool
    ) -> Iterator[dict[str, Any]]:
        chosen = self._range("object_ends", index)
        size = self.image_sizes[index].tolist()
        values = zip(
            *(self._arrays[name][chosen].tolist() for name in ("labels", "areas", "crowd")),
            self._rles(chosen, size) if of_masks else self._arrays["boxes"][chosen].tolist(),
            strict=True,
        )
        for label, area, crowd, extent in values:
            yield {
                "id": 0,
                "image_id": image_id,
                "category_id": self.category_ids[label - 1],
                "area": area,
                "iscrowd": int(crowd),
                "segmentation" if of_masks else "bbox": extent,
            }

    def _rles(self, chosen: slice, size: list[int]) -> Iterator[dict[str, Any]]:
        """Run lengths of objects of one image."""
        for shape in self._shapes(chosen):
            if isinstance(shape, bytes) and shape:
                yield {"size": size, "counts": shape}
            else:  # a crowd may be only a box
                yield encode_polygons([p.ravel() for p in shape] or [_NO_POINTS], size)  # type: ignore[union-attr]

    def _shapes(self, chosen: slice) -> Iterator[list[npt.NDArray[np.float64]] | bytes]:
        """Polygons (P, 2), or run lengths, of objects that follow each other."""
        polygon_ends = self._arrays["polygon_ends"][chosen].tolist()
        polygon = self._start("polygon_ends", chosen.start)
        start = self._start("point_ends", polygon)
        for number, last in enumerate(polygon_ends, start=chosen.start):
            if polygon == last:
                yield self._bytes("rle", number)
                continue
            polygons = []
            for end in self._arrays["point_ends"][polygon:last].tolist():
                polygons.append(self._arrays["points"][start:end])
                start = end
            yield polygons
            polygon = last

    def _start(self, key: str, number: int) -> int:
        return int(self._arrays[key][number - 1]) if number > 0 else 0

    def _range(self, key: str, number: int) -> slice:
        return slice(self._start(key, number), int(self._arrays[key][number]))

    def _bytes(self, kind: str, number: int) -> bytes:
        return self._arrays[f"{kind}s"][self._range(f"{kind}_ends", number)].tobytes()


def _write(packed: dict[str, Any], target: Path) -> None:
    """A file that is on the disk before it has its name."""
    unfinished = target.with_suffix(".unfinished")
    try:
        try:
            torch.save(packed, unfinished)  # by its path: through a file, it makes copies
        except RuntimeError as error:
            raise OSError(error) from error
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
