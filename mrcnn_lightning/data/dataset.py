"""Images and their objects by index, and batches of them.

B images, G padded objects an image.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.bands import RGB, ImageFormat
from mrcnn_lightning.data.copy_paste import paste_objects
from mrcnn_lightning.data.sizing import Canvas
from mrcnn_lightning.data.transforms import (
    BoxSource,
    ImageTargets,
    MovedImage,
    Sample,
    image_targets,
    move_objects,
)
from mrcnn_lightning.data.window_reader import WindowReader
from mrcnn_lightning.ops.sampling import image_seed
from mrcnn_lightning.structures import Batch, Targets
from mrcnn_lightning.user_error import UserError


class COCODataset(Dataset[Sample]):
    """The images of a COCO-format set.

    What is drawn at random depends on seed, epoch and image alone.

    Args:
        annotations: of the set.
        folder: of the images, or one of each set that was merged.
        transform: of an image and its points, see `compose_transforms`.
        mini_mask_size: M, or None for no masks.
        skip_empty: whether images without an object that is no crowd are left out.
        max_objects: at most so many of an image's objects, drawn at random, or None for all.
        boxes_from: see `image_targets`.
        copy_paste: the part of images on which objects of another one are pasted, see
            `paste_objects`; it wants masks.
        skip_damaged: whether an image that cannot be read gives way to another one that can.
        seed: of the run.
        image_format: of all images.
        windows: reads the images that `annotations` has, which are windows of larger ones; None
            where they are whole.

    Attributes:
        kept: (len(self),) the images of the set that are served.
        is_damaged: (images of the set,) bool, those that could not be read so far, in any of the
            processes that load images.

    Raises:
        UserError: `max_objects` leaves none.
    """

    def __init__(
        self,
        annotations: Annotations,
        *,
        folder: str | Path | Sequence[str],
        transform: Callable[..., Any],
        mini_mask_size: int | None,
        skip_empty: bool,
        max_objects: int | None,
        boxes_from: BoxSource,
        copy_paste: float,
        skip_damaged: bool,
        seed: int,
        image_format: ImageFormat = RGB,
        windows: WindowReader | None = None,
    ) -> None:
        if max_objects is not None and max_objects < 1:
            raise UserError(f"data.max_objects={max_objects} leaves none: null is for all of them")
        self.annotations = annotations
        folders = [folder] if isinstance(folder, (str, Path)) else folder
        self.folders = [Path(each) for each in folders]
        self._sets = annotations.sets()
        self.image_format = image_format
        self.windows = windows
        self.transform = transform
        self.mini_mask_size = None if annotations.without_mask else mini_mask_size
        self.max_objects = max_objects
        self.boxes_from = boxes_from
        self.copy_paste = copy_paste
        self.skip_damaged = skip_damaged
        self.is_damaged = torch.zeros(len(annotations), dtype=torch.bool).share_memory_()
        self.seed = seed
        every = torch.arange(len(annotations))
        self.kept: Tensor = every[annotations.num_trainable() > 0] if skip_empty else every

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def image_sizes(self) -> Tensor:
        """Height and width of the files' images, (len(self), 2)."""
        return self.annotations.image_sizes[self.kept]

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Sample:
        """An image as it is in an epoch.

        Raises:
            UserError: the file cannot be read, is of another size than annotated, or a transform
                fails with it.
        """
        epoch = epoch_and_index[0]
        index, image = self._read(epoch_and_index[1])
        image_id = int(self.annotations.image_ids[index])
        height, width = self.annotations.image_sizes[index].tolist()
        path = self.path(index)
        own_seed = image_seed(self.seed, epoch, image_id)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(own_seed)  # and no other device's
            try:
                moved = self._moved(index, image)
                if self.copy_paste and float(torch.rand(())) < self.copy_paste:
                    moved = paste_objects(moved, self._another(epoch_and_index[1]))
                targets = image_targets(
                    moved, mini_mask_size=self.mini_mask_size, boxes_from=self.boxes_from
                )
            except UserError:
                raise
            except (RuntimeError, TypeError, ValueError) as error:  # such as a side of 0 pixels
                first = str(error).splitlines()[0]
                raise UserError(
                    f"{path} of {width} x {height} pixels cannot go through the data's transforms: "
                    f"{first}"
                ) from error
            if self.max_objects is not None:
                targets = _thinned(targets, self.max_objects)
        return Sample(moved.image, image_id, own_seed, (height, width), targets)

    def _moved(self, index: int, image: Tensor) -> MovedImage:
        objects, with_masks = self.annotations.objects(index), self.mini_mask_size is not None
        return move_objects(image, objects, self.transform, with_masks=with_masks)

    def _another(self, number: int) -> MovedImage:
        """Another image, drawn at random, after a transform of its own."""
        further = 1 + int(torch.randint(max(len(self) - 1, 1), ()))
        return self._moved(*self._read((number + further) % len(self)))

    def path(self, index: int) -> Path:
        """The file of an image of the set."""
        return self.folders[int(self._sets[index])] / self.annotations.file_name(index)

    def _in_turn(self, number: int) -> Iterator[int]:
        """Places in the set: of an image and of those that may stand in for it."""
        yield int(self.kept[number])
        others = self.kept.roll(-number)[1:]
        sizes = self.annotations.image_sizes
        is_other_size = (sizes[others] != sizes[self.kept[number]]).any(dim=1)
        yield from others[is_other_size.int().argsort(stable=True)].tolist()

    def _read(self, number: int) -> tuple[int, Tensor]:
        """The place in the set and the pixels of an image, or of another one that can be read.

        That is the next one of its size, which has the same place in a batch, or else the next.

        Raises:
            UserError: it cannot be read and none may stand in for it, or none can be read.
        """
        for index in self._in_turn(number):
            height, width = self.annotations.image_sizes[index].tolist()
            try:
                if self.windows is not None:
                    return index, self.windows.read(self.path(index), index)
                return index, self.image_format.read(self.path(index), size=(height, width))
            except UserError:
                if not self.skip_damaged:
                    raise
                self.is_damaged[index] = True
        raise UserError(
            f"none of the {len(self)} images in {', '.join(map(str, self.folders))} can be read"
        )


def _thinned(targets: ImageTargets, most: int) -> ImageTargets:
    """At most so many of the objects, in their order."""
    if len(targets.labels) <= most:
        return targets
    chosen = torch.randperm(len(targets.labels))[:most].sort().values
    masks, frames = targets.masks, targets.mask_frames
    return ImageTargets(
        boxes=targets.boxes[chosen],
        labels=targets.labels[chosen],
        crowd=targets.crowd[chosen],
        masks=None if masks is None else masks[chosen],
        mask_frames=None if frames is None else frames[chosen],
    )


def collate(samples: Sequence[Sample], *, canvas: Canvas) -> Batch:
    """Samples on one canvas, with their objects padded to the most of any of them."""
    sizes = torch.tensor([sample.image.shape[1:] for sample in samples])  # (B, 2)
    original_sizes = torch.tensor([sample.original_size for sample in samples])
    canvas_size = canvas.size(sizes.amax(0))  # (2,)
    origins = canvas.origins(sizes, canvas_size)  # (B, 2)
    windows = torch.cat([origins, origins + sizes.flip(1)], dim=1)  # (B, 4)
    # A pixel's channels lie together, as decoders leave them and convolutions want them.
    channels, dtype = samples[0].image.shape[0], samples[0].image.dtype
    images = _zeros(len(samples), *canvas_size.tolist(), channels, dtype=dtype)
    images = images.permute(0, 3, 1, 2)
    for image, sample, (x1, y1, x2, y2) in zip(images, samples, windows.tolist(), strict=True):
        image[:, y1:y2, x1:x2] = sample.image
    return Batch(
        images=images,
        image_ids=torch.tensor([sample.image_id for sample in samples]),
        windows=windows.float(),
        scales=sizes.flip(1).double() / original_sizes.flip(1),
        original_sizes=original_sizes,
        seeds=torch.tensor([sample.seed for sample in samples]),
        targets=_on_canvas([sample.targets for sample in samples], origins.repeat(1, 2)),
    )


def _zeros(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros; a worker makes them where the main process sees them, and nothing is copied there."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=dtype)
    # The system gives out zeros.
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def _on_canvas(images: Sequence[ImageTargets], origins: Tensor) -> Targets:
    """The objects of images whose corners lie at `origins` (B, 4) of the canvas, padded."""
    most = max(1, *(len(targets.labels) for targets in images)) if images else 1

    def padded(values: Sequence[Tensor]) -> Tensor:
        batch = _zeros(len(values), most, *values[0].shape[1:], dtype=values[0].dtype)
        for place, value in zip(batch, values, strict=True):
            place[: len(value)] = value
        return batch

    def moved(boxes: Sequence[Tensor]) -> list[Tensor]:
        return [each + origin for each, origin in zip(boxes, origins, strict=True)]

    masks = [targets.masks for targets in images if targets.masks is not None]
    frames = [targets.mask_frames for targets in images if targets.mask_frames is not None]
    return Targets(
        boxes=padded(moved([targets.boxes for targets in images])),
        labels=padded([targets.labels for targets in images]),
        crowd=padded([targets.crowd for targets in images]),
        masks=padded(masks) if masks else None,
        mask_frames=padded(moved(frames)) if frames else None,
    )
