"""Annotations that all workers and ranks of a machine share as one memory-mapped file.

N images, G objects of one image, P points of a polygon.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from mrcnn_lightning.data.coco_json import pack_coco_json

# Raised when packed files of before can no longer be read.
_FORMAT = 1


@dataclass
class Objects:
    """The objects of one image, in its own pixels."""

    boxes: Tensor  # (G, 4) float32
    labels: Tensor  # (G,) int64 in 1..K
    crowd: Tensor  # (G,) bool
    shapes: list[list[Tensor] | bytes]  # polygons (P, 2), or run lengths of the whole image


class Annotations:
    """A packed COCO-format file.

    Args:
        packed: what `pack_coco_json` returns.
    """

    def __init__(self, packed: dict[str, Any]) -> None:
        self.class_names: list[str] = packed["class_names"]
        self.category_ids: list[int] = packed["category_ids"]
        self.has_masks: bool = packed["has_masks"]
        self.image_ids: Tensor = packed["image_ids"]  # (N,)
        self.image_sizes: Tensor = packed["image_sizes"]  # (N, 2) height, width
        self._packed = packed

    @classmethod
    def load(cls, file: str | Path, *, cache_dir: str | Path) -> "Annotations":
        """The annotations of a COCO-format file, packed if it was not yet.

        Args:
            file: a json file; another content is packed anew.
            cache_dir: where packed files are kept; `~` is the home folder.

        Raises:
            ValueError: see `pack_coco_json`.
        """
        with Path(file).open("rb") as opened:
            digest = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16))
        cache = Path(cache_dir).expanduser()
        cache.mkdir(parents=True, exist_ok=True)
        target = cache / f"{Path(file).stem}_{digest.hexdigest()}_v{_FORMAT}.pt"
        with FileLock(target.with_suffix(".lock")):
            if not target.exists():
                unfinished = target.with_suffix(".unfinished")
                torch.save(pack_coco_json(file), unfinished)
                unfinished.replace(target)
        return cls(torch.load(target, mmap=True, weights_only=True))

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        """The image's file, relative to the folder of images."""
        return self._bytes("name", index).decode()

    def objects(self, index: int) -> Objects:
        """The objects of an image."""
        chosen = self._range("object_ends", index)
        return Objects(
            boxes=self._packed["boxes"][chosen].clone(),
            labels=self._packed["labels"][chosen].clone(),
            crowd=self._packed["crowd"][chosen].clone(),
            shapes=[self._shape(number) for number in range(chosen.start, chosen.stop)],
        )

    def _shape(self, number: int) -> list[Tensor] | bytes:
        polygons = self._range("polygon_ends", number)
        if polygons.start == polygons.stop:
            return self._bytes("rle", number)
        return [
            self._packed["points"][self._range("point_ends", polygon)]
            for polygon in range(polygons.start, polygons.stop)
        ]

    def _range(self, key: str, number: int) -> slice:
        ends = self._packed[key]
        return slice(int(ends[number - 1]) if number > 0 else 0, int(ends[number]))

    def _bytes(self, kind: str, number: int) -> bytes:
        return self._packed[f"{kind}s"][self._range(f"{kind}_ends", number)].numpy().tobytes()
