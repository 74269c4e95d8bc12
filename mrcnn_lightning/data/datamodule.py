"""The LightningDataModule of COCO and of any COCO-format set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms.v2 import functional as tv_functional

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.dataset import COCODataset, canvas_size, collate
from mrcnn_lightning.data.samplers import EvalBatchSampler, TrainBatchSampler
from mrcnn_lightning.data.transforms import Sample, compose_transforms

# What each stage reads; the last is what it evaluates.
SPLITS_OF_STAGE = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


def resized_size(size: tuple[int, int], min_size: int, max_size: int) -> tuple[int, int]:
    """Height and width after the shorter side became `min_size`, or the longer `max_size`."""
    short, long = min(size), max(size)
    new_short, new_long = min_size, int(min_size * long / short)
    if new_long > max_size:
        new_short, new_long = max(1, int(max_size * short / long)), max_size
    return (new_short, new_long) if size[0] <= size[1] else (new_long, new_short)


class ResizeShorterSide:
    """Resizes images and their points as `resized_size` says, for evaluation and prediction.

    Args:
        min_size: the shorter side, in pixels, unless the longer would pass `max_size`.
        max_size: the longest side.
    """

    def __init__(self, *, min_size: int, max_size: int) -> None:
        self.min_size = min_size
        self.max_size = max_size

    def __call__(self, *parts: Tensor) -> Any:
        """An image (3, H, W), or an image and its points."""
        size = resized_size((parts[0].shape[1], parts[0].shape[2]), self.min_size, self.max_size)
        resized = tuple(tv_functional.resize(part, list(size)) for part in parts)
        return resized if len(resized) > 1 else resized[0]


class COCODataModule(lightning.LightningDataModule):
    """Serves a COCO-format set.

    Args:
        train_images: folder of images.
        train_json: annotations in COCO's format.
        val_images: likewise.
        val_json: likewise.
        test_images: likewise; None is `val_images`.
        test_json: likewise, None is `val_json`; `stage=predict` needs no `annotations` in it.
        prepare: called first, to make the files; or None.
        batch_size: images an optimizer step, over all devices and accumulated batches.
        eval_batch_size: images a device in evaluation.
        min_size: the shorter side of an image in evaluation and prediction, in pixels.
        max_size: at most the longer side.
        train_transforms: torchvision's transforms v2, resizing among them.
        mini_mask_size: cells a side of the masks that are learnt from; None for no masks.
        num_workers: processes a device that load images.
        cache_dir: for packed annotations.
        seed: of the order of images and of augmentation.
    """

    def __init__(
        self,
        *,
        train_images: str,
        train_json: str,
        val_images: str,
        val_json: str,
        test_images: str | None,
        test_json: str | None,
        prepare: Callable[[], None] | None,
        batch_size: int,
        eval_batch_size: int,
        min_size: int,
        max_size: int,
        train_transforms: Sequence[Callable[..., Any]],
        mini_mask_size: int | None,
        num_workers: int,
        cache_dir: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.files = {
            "train": (train_images, train_json),
            "val": (val_images, val_json),
            "test": (test_images or val_images, test_json or val_json),
        }
        self.prepare = prepare
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.min_size = min_size
        self.max_size = max_size
        self.train_transform = compose_transforms(train_transforms)
        self.mini_mask_size = mini_mask_size
        self.num_workers = num_workers
        self.cache_dir = cache_dir
        self.seed = seed
        self.annotations: dict[str, Annotations] = {}
        # Where training stood when it was resumed.
        self._resumed = {"images": 0, "steps": 0}

    @property
    def class_names(self) -> list[str]:
        """Names of the classes 1..K, in the order of their ids."""
        return next(iter(self.annotations.values())).class_names

    @property
    def category_ids(self) -> list[int]:
        """The file's ids of the classes 1..K."""
        return next(iter(self.annotations.values())).category_ids

    def setup(self, stage: str) -> None:
        """Read and check the files that a stage needs.

        Raises:
            ValueError: one is missing or wrong, or they do not have the same classes.
        """
        missing = [split for split in SPLITS_OF_STAGE[stage] if split not in self.annotations]
        if missing and self.prepare is not None:
            self.prepare()
        for split in missing:
            self._require_files(split)
            annotations = Annotations.load(self.files[split][1], cache_dir=self.cache_dir)
            self._require_images(split, annotations)
            self.annotations[split] = annotations
        for split, annotations in self.annotations.items():
            own = set(zip(annotations.category_ids, annotations.class_names, strict=True))
            others = set(zip(self.category_ids, self.class_names, strict=True))
            for category, name in sorted(own ^ others)[:1]:
                raise ValueError(
                    f"data.{split}_json={self.files[split][1]} has other categories than "
                    f"the file beside it: only one of them has {name} with the id {category}"
                )

    def _require_files(self, split: str) -> None:
        images, json = self.files[split]
        for kind, path in (("json", json), ("images", images)):
            if not Path(path).exists():
                raise ValueError(
                    f"data.{split}_{kind}={path} does not exist: say where the data set lies with "
                    "data_root=DIR, fetch COCO with `mrcnn download-coco DIR`, or try "
                    "experiment=shapes, which needs none"
                )

    def _require_images(self, split: str, annotations: Annotations) -> None:
        folder = Path(self.files[split][0])
        names = [annotations.file_name(index) for index in range(len(annotations))]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            first = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"{len(missing)} of {len(names)} images are missing from "
                f"data.{split}_images={folder}: {first}"
            )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Augmented batches of this rank, from where training stands.

        Raises:
            ValueError: the batch size does not divide by the devices, or there are too few images.
        """
        world_size = self.trainer.world_size if self.trainer else 1
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        num = len(self.annotations["train"])
        if self.batch_size % (world_size * accumulate):
            raise ValueError(
                f"data.batch_size={self.batch_size} images a step do not divide by {world_size} "
                f"devices x {accumulate} accumulated batches: make it a multiple of "
                f"{world_size * accumulate}"
            )
        if num < self.batch_size:
            raise ValueError(
                f"data.batch_size={self.batch_size}, but data.train_json={self.files['train'][1]} "
                f"has {num} images: make it {num} or less"
            )
        sampler = TrainBatchSampler(
            self.annotations["train"].image_sizes,
            batch_size=self.batch_size,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=world_size,
            accumulate=accumulate,
            seed=self.seed,
            images_seen=self._images_seen,
        )
        return self._loader("train", self.train_transform, sampler)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Batches of the validation set, each of one padded size."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Batches of the test set."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Batches of the test set, which needs no annotations."""
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader[Sample]:
        sizes = [
            resized_size((height, width), self.min_size, self.max_size)
            for height, width in self.annotations[split].image_sizes.tolist()
        ]
        sampler = EvalBatchSampler(
            canvas_size(torch.tensor(sizes)),
            batch_size=self.eval_batch_size,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        resize = ResizeShorterSide(min_size=self.min_size, max_size=self.max_size)
        return self._loader(split, resize, sampler)

    def _loader(
        self,
        split: str,
        transform: Callable[..., Any],
        sampler: Sampler[list[tuple[int, int]]],
    ) -> DataLoader[Sample]:
        dataset = COCODataset(
            self.annotations[split],
            folder=self.files[split][0],
            transform=transform,
            mini_mask_size=self.mini_mask_size,
            seed=self.seed,
        )
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _images_seen(self) -> int:
        # Lightning asks for the first batches before it has restored its count of steps.
        steps = max(self.trainer.global_step if self.trainer else 0, self._resumed["steps"])
        return self._resumed["images"] + (steps - self._resumed["steps"]) * self.batch_size

    def state_dict(self) -> dict[str, int]:
        """Where training stands: images seen on all ranks, and optimizer steps."""
        return {
            "images": self._images_seen(),
            "steps": self.trainer.global_step if self.trainer else 0,
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where training stood."""
        self._resumed = dict(state_dict)
