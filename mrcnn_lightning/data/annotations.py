"""Annotations that all workers and ranks of a machine share as one memory-mapped file.

N images, O objects of all images, G objects of one image, P points of a polygon.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
    """A packed COCO-format file, which every process maps into its memory for itself.

    Args:
        packed_file: see `load`.
    """

    def __init__(self, packed_file: Path) -> None:
        self._file = packed_file
        self._packed = torch.load(packed_file, mmap=True, weights_only=True)
        self.class_names: list[str] = self._packed["class_names"]
        self.category_ids: list[int] = self._packed["category_ids"]
        self.is_annotated: bool = self._packed["is_annotated"]
        self.without_mask: list[int] = self._packed["without_mask"]  # ids of annotations
        self.image_ids: Tensor = self._packed["image_ids"]  # (N,)
        self.image_sizes: Tensor = self._packed["image_sizes"]  # (N, 2) height, width

    def __reduce__(self) -> tuple[Any, ...]:
        return Annotations, (self._file,)

    @classmethod
    def load(cls, file: str | Path, *, cache_dir: str | Path) -> "Annotations":
        """The annotations of a COCO-format file, packed if it was not yet.

        Args:
            file: a json file; another content is packed anew.
            cache_dir: where packed files are kept; `~` is the home folder.

        Raises:
            ValueError: see `pack_coco_json`, or the folder cannot be written to.
        """
        with Path(file).open("rb") as opened:
            digest = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16))
        cache = Path(cache_dir).expanduser()
        target = cache / f"{Path(file).stem}_{digest.hexdigest()}_v{_FORMAT}.pt"
        if not target.exists():
            try:
                cache.mkdir(parents=True, exist_ok=True)
                with FileLock(target.with_suffix(".lock")):
                    if not target.exists():
                        unfinished = target.with_suffix(".unfinished")
                        torch.save(pack_coco_json(file), unfinished)
                        unfinished.replace(target)
            except OSError as error:
                raise ValueError(
                    f"data.cache_dir={cache_dir} cannot be written to, give another: {error}"
                ) from error
        return cls(target)

    def __len__(self) -> int:
        return len(self.image_ids)

    def num_trainable(self) -> Tensor:
        """How many objects each image has, crowds aside, (N,)."""
        numbers = F.pad((~self._packed["crowd"]).cumsum(0), (1, 0))  # (O + 1,)
        return numbers[self._packed["object_ends"]].diff(prepend=numbers[:1])

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
