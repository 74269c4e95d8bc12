"""Images and their objects by index, and batches of them.

B images, G padded objects an image.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.images import read_image
from mrcnn_lightning.data.transforms import Sample, transform_objects
from mrcnn_lightning.ops.sampling import image_key
from mrcnn_lightning.structures import Batch, Targets

# Canvases have sides of multiples of this, the largest stride of a pyramid.
_STRIDE = 32


class COCODataset(Dataset[Sample]):
    """The images of a COCO-format set.

    What a transform draws from torch depends on seed, epoch and image alone.

    Args:
        annotations: of the set.
        folder: of the images.
        transform: of an image and its points, see `compose_transforms`.
        mini_mask_size: M, or None for no masks.
        seed: of the run.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        folder: str | Path,
        transform: Callable[..., Any],
        mini_mask_size: int | None,
        seed: int,
    ) -> None:
        self.annotations = annotations
        self.folder = Path(folder)
        self.transform = transform
        self.mini_mask_size = None if annotations.without_mask else mini_mask_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Sample:
        """An image as it is in an epoch.

        Raises:
            ValueError: the file cannot be read, or is of another size than annotated.
        """
        epoch, index = epoch_and_index
        image_id = int(self.annotations.image_ids[index])
        height, width = self.annotations.image_sizes[index].tolist()
        path = self.folder / self.annotations.file_name(index)
        image = read_image(path, size=(height, width))
        key = image_key(self.seed, epoch, image_id)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key)  # and no other device's
            image, targets = transform_objects(
                image,
                self.annotations.objects(index),
                self.transform,
                mini_mask_size=self.mini_mask_size,
            )
        return Sample(image, image_id, key, (height, width), **targets)  # type: ignore[arg-type]


def canvas_size(sizes: Tensor) -> Tensor:
    """The padded height and width for images of some height and width, (..., 2) to (..., 2)."""
    return (sizes + _STRIDE - 1) // _STRIDE * _STRIDE


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples on one canvas, with their objects padded to the most of any of them."""
    sizes = torch.tensor([sample.image.shape[1:] for sample in samples])  # (B, 2)
    original_sizes = torch.tensor([sample.original_size for sample in samples])
    height, width = canvas_size(sizes.amax(0)).tolist()
    images = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
    for canvas, sample in zip(images, samples, strict=True):
        canvas[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    most = max(1, *(len(sample.labels) for sample in samples)) if samples else 1

    def padded(name: str) -> Tensor | None:
        values = [getattr(sample, name) for sample in samples]
        if values[0] is None:
            return None
        room = [(0, 0) * (value.dim() - 1) + (0, most - len(value)) for value in values]
        return torch.stack([F.pad(value, pad) for value, pad in zip(values, room, strict=True)])

    return Batch(
        images=images,
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        windows=F.pad(sizes.flip(1), (2, 0)).float(),
        scales=sizes.flip(1).double() / original_sizes.flip(1),
        original_sizes=original_sizes,
        keys=torch.tensor([sample.key for sample in samples]),
        targets=Targets(
            **{name: padded(name) for name in ("boxes", "labels", "crowd", "masks", "mask_frames")}  # type: ignore[arg-type]
        ),
    )
