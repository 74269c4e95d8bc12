"""The LightningDataModule of COCO and of any COCO-format set."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import lightning
import torch
from torch import Tensor
from torch.utils.data import Sampler

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.bands import DType, ImageFormat
from mrcnn_lightning.data.dataset import COCODataset, collate
from mrcnn_lightning.data.loader import TimedLoader
from mrcnn_lightning.data.merged_sets import Classes
from mrcnn_lightning.data.samplers import EvalBatchSampler, TrainBatchSampler
from mrcnn_lightning.data.sampling import Sampling, images_and_labels, part_of
from mrcnn_lightning.data.sizing import Canvas, Resize
from mrcnn_lightning.data.splits import Splits
from mrcnn_lightning.data.transforms import BoxSource, colour_transforms, compose_transforms
from mrcnn_lightning.data.window_reader import WindowReader
from mrcnn_lightning.data.windows import Windows
from mrcnn_lightning.structures import Batch, map_tensors
from mrcnn_lightning.user_error import UserError

# What each stage reads; the last is what it evaluates.
SPLITS_OF_STAGE = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class COCODataModule(lightning.LightningDataModule):
    """Serves a COCO-format set.

    Args:
        train_images: folder of images, or a list of one for each set.
        train_json: annotations in COCO's format, or a list; classes of one name are the same.
        train_weights: how often an epoch shows the images of each set; None is once.
        val_images: likewise.
        val_json: likewise.
        test_images: likewise; None is `val_images`.
        test_json: likewise, None is `val_json`; `stage=predict` needs no `annotations` in it.
        classes: new names of classes by their old ones, in all files: several may become one, and
            one whose new name is None is left out; None changes nothing.
        prepare: called first, to make the files; or None.
        channels: of an image; three of uint8 are RGB.
        dtype: `uint8`, `uint16` or `float32`: of an image's numbers, see `ImageFormat`.
        windows: cuts large images, for training and evaluation; None takes whole ones.
        batch_size: images an optimizer step, over all devices and accumulated batches.
        eval_batch_size: images a device in evaluation.
        resize: of images in evaluation and prediction.
        canvas: of batches.
        train_transforms: torchvision's transforms v2, resizing among them.
        mini_mask_size: cells a side of the masks that are learnt from.
        skip_empty: whether training leaves out images without an object that is no crowd.
        max_objects: at most so many objects of an image in training, drawn at random; or None.
        boxes_from: `file`, `pixels` or `outlines`: boxes in training, see `image_targets`.
        copy_paste: the part of training images on which objects of another one are pasted.
        limit: train on so many images, or on such a share of them, see `part_of`; or None.
        sampling: says how often an epoch shows each training image.
        damaged_images: `stop` at an image that cannot be read, or `skip` it: another one stands
            in for it.
        num_workers: processes a device that load images.
        preview: training images that `preview_batches` has at least; or None.
        cache_dir: for packed annotations.
        with_masks: whether the model has a use for masks.
        seed: of the order of images and of augmentation.

    Raises:
        UserError: a size is less than 1, the seed is no whole number, there are no such boxes or
            images, or a transform of colour meets images that are not RGB.
    """

    def __init__(
        self,
        *,
        train_images: str | Sequence[str],
        train_json: str | Sequence[str],
        train_weights: Sequence[float] | None,
        val_images: str | Sequence[str],
        val_json: str | Sequence[str],
        test_images: str | Sequence[str] | None,
        test_json: str | Sequence[str] | None,
        classes: Classes | None,
        prepare: Callable[[], None] | None,
        channels: int,
        dtype: DType,
        windows: Windows | None,
        batch_size: int,
        eval_batch_size: int,
        resize: Resize,
        canvas: Canvas,
        train_transforms: Sequence[Callable[..., Any]],
        mini_mask_size: int,
        skip_empty: bool,
        max_objects: int | None,
        limit: int | float | None,
        sampling: Sampling,
        boxes_from: BoxSource,
        copy_paste: float,
        damaged_images: Literal["stop", "skip"],
        num_workers: int,
        preview: int | None,
        cache_dir: str,
        with_masks: bool,
        seed: int,
    ) -> None:
        super().__init__()
        sizes = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "mini_mask_size": mini_mask_size,
            "preview": preview,
        }
        for key, value in sizes.items():
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value} is less than 1")
        if not 0 <= copy_paste <= 1:
            raise UserError(f"data.copy_paste={copy_paste} is not between 0 and 1")
        if not isinstance(seed, int):
            raise UserError(f"seed={seed} is no whole number")
        for key, choice, choices in (
            ("boxes_from", boxes_from, get_args(BoxSource)),
            ("damaged_images", damaged_images, ("stop", "skip")),
        ):
            if choice not in choices:
                raise UserError(f"data.{key}={choice} is not one of {', '.join(choices)}")
        num_sets = 1 if isinstance(train_json, str) else len(train_json)
        self.train_weights = [1.0] * num_sets if train_weights is None else list(train_weights)
        if len(self.train_weights) != num_sets or min(self.train_weights) < 0:
            raise UserError(
                f"data.train_weights={train_weights} must be {num_sets} numbers from 0 on, one for "
                "each file of data.train_json"
            )
        self.prepare = prepare
        self.image_format = ImageFormat(channels, dtype)
        self.image_format.require_known()
        colours = [] if self.image_format.is_rgb else colour_transforms(train_transforms)
        if colours:
            raise UserError(
                f"data.train_transforms has {colours[0]}, a transform of RGB's colours, and images "
                f"have data.channels={channels} data.dtype={dtype}: leave it out"
            )
        self.windows = windows
        self.splits = Splits(
            images={"train": train_images, "val": val_images, "test": test_images or val_images},
            jsons={"train": train_json, "val": val_json, "test": test_json or val_json},
            classes=classes,
            image_format=self.image_format,
            windows=windows,
            cache_dir=cache_dir,
            with_masks=with_masks,
        )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.resize = resize
        self.canvas = canvas
        self.train_transform = compose_transforms(train_transforms)
        self.mini_mask_size = mini_mask_size
        self.skip_empty = skip_empty
        self.max_objects = max_objects
        self.limit = limit
        self.sampling = sampling
        self.boxes_from = boxes_from
        self.copy_paste = copy_paste
        self.damaged_images = damaged_images
        self.num_workers = num_workers
        self.preview = preview
        self.cache_dir = cache_dir
        self.with_masks = with_masks
        self.seed = seed
        self._copies: torch.cuda.Stream | None = None
        # Where training stood when it was resumed.
        self._resumed = {"images": 0, "steps": 0}

    @property
    def files(self) -> dict[str, tuple[list[str], list[str]]]:
        """Folders of images and json files of each split."""
        return self.splits.files

    @property
    def annotations(self) -> dict[str, Annotations]:
        """Of the splits that were read."""
        return self.splits.annotations

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
            UserError: one is missing or wrong, has no annotations or no masks where they are
                needed, they do not have the same classes, or windows are to be predicted.
        """
        if stage == "predict" and self.windows is not None:
            raise UserError(
                "stage=predict finds objects in whole images: leave out data/windows, or evaluate "
                "windows with stage=test"
            )
        splits = SPLITS_OF_STAGE[stage]
        if self.prepare is not None and not set(splits) <= set(self.annotations):
            self.prepare()
        self.splits.read(splits, needs_truth=stage != "predict")

    def train_dataloader(self) -> TimedLoader:
        """Augmented batches of this rank, from where training stands.

        Raises:
            UserError: the batch size does not divide by the devices, or an epoch's limit by the
                accumulation, there are too few images, or no masks where boxes are made from them.
        """
        world_size = self.trainer.world_size if self.trainer else 1
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        if self.batch_size % (world_size * accumulate):
            raise UserError(
                f"data.batch_size={self.batch_size} images a step do not divide by {world_size} "
                f"devices x {accumulate} accumulated batches: make it a multiple of "
                f"{world_size * accumulate}"
            )
        if self.boxes_from != "file" and not self.with_masks:
            raise UserError(
                f"data.boxes_from={self.boxes_from} wants masks, but the model has no mask head: "
                "set data.boxes_from=file"
            )
        if self.copy_paste and not self.with_masks:
            raise UserError(
                f"data.copy_paste={self.copy_paste} wants masks, but the model has no mask head: "
                "set data.copy_paste=0"
            )
        dataset = self._dataset("train", self.train_transform)
        if self.limit is not None:
            dataset.kept = part_of(dataset.kept, self.limit, seed=self.seed)
        self._require_enough(len(dataset))
        factors = self._factors(dataset.kept)
        if round(float(factors.sum()), 6) < self.batch_size:
            raise UserError(
                f"an epoch shows {float(factors.sum()):g} images (data.sampling, "
                f"data.train_weights={self.train_weights}), data.batch_size={self.batch_size} is "
                "more: raise the weights, or lower it"
            )
        sampler = TrainBatchSampler(
            dataset.image_sizes,
            factors=factors,
            batch_size=self.batch_size,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=world_size,
            accumulate=accumulate,
            seed=self.seed,
            images_seen=self._images_seen,
        )
        trainer: Any = self.trainer
        if trainer and not trainer.fast_dev_run:
            steps = _whole_steps(trainer, len(sampler))
            sampler.repeated_steps = steps if trainer.overfit_batches else None
        return self._loader(dataset, sampler)

    def _factors(self, kept: Tensor) -> Tensor:
        """How often an epoch shows each of the training images, (N,)."""
        images, labels = images_and_labels(self.annotations["train"], kept)
        weights = torch.tensor(self.train_weights, dtype=torch.float64)
        sets = self.annotations["train"].sets()[kept]
        return self.sampling(images, labels, len(kept)) * weights[sets]

    def preview_batches(self) -> Iterator[Batch]:
        """The first batches that this rank trains on, of `preview` images or more.

        They are loaded in this process, and training sees them again to the pixel. There are none
        after the first epoch.
        """
        loader, missing = self.train_dataloader(), self.preview or 0
        assert loader.batch_sampler is not None
        for keys in loader.batch_sampler:
            if missing <= 0:
                return
            yield loader.collate_fn([loader.dataset[key] for key in keys])
            missing -= len(keys)

    def _require_enough(self, num: int) -> None:
        file, what = self.splits.text("train"), "images"
        if self.skip_empty:
            what = "images with objects (data.skip_empty=true)"
            if num == 0:
                raise UserError(
                    f"data.train_json={file} has no {what}: give another file, or set "
                    "data.skip_empty=false"
                )
        if self.limit is not None:
            what += f" (data.limit={self.limit})"
        if num < self.batch_size:
            raise UserError(
                f"data.batch_size={self.batch_size}, but data.train_json={file} has {num} {what}: "
                f"make it {num} or less"
            )

    def val_dataloader(self) -> TimedLoader:
        """Batches of the validation set, each of one padded size."""
        return self._eval_loader("val")

    def test_dataloader(self) -> TimedLoader:
        """Batches of the test set."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> TimedLoader:
        """Batches of the test set, which needs no annotations."""
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> TimedLoader:
        sizes = [
            self.resize.size((height, width))
            for height, width in self.annotations[split].image_sizes.tolist()
        ]
        sampler = EvalBatchSampler(
            self.canvas.size(torch.tensor(sizes)),
            batch_size=self.eval_batch_size,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        return self._loader(self._dataset(split, self.resize), sampler)

    def _dataset(self, split: str, transform: Callable[..., Any]) -> COCODataset:
        in_training = split == "train"
        reader = partial(WindowReader, image_format=self.image_format, cache_dir=self.cache_dir)
        return COCODataset(
            self.annotations[split],
            folder=self.files[split][0],
            image_format=self.image_format,
            windows=reader(self.splits.cuts[split]) if split in self.splits.cuts else None,
            transform=transform,
            mini_mask_size=self.mini_mask_size if self.with_masks else None,
            skip_empty=in_training and self.skip_empty,
            max_objects=self.max_objects if in_training else None,
            boxes_from=self.boxes_from if in_training else "file",
            copy_paste=self.copy_paste if in_training else 0.0,
            skip_damaged=self.damaged_images == "skip",
            seed=self.seed,
        )

    def _loader(self, dataset: COCODataset, sampler: Sampler[list[tuple[int, int]]]) -> TimedLoader:
        return TimedLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=partial(collate, canvas=self.canvas),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Copy a batch while the device is still at work on the last one."""
        if device.type != "cuda":
            return batch.to(device)
        self._copies = self._copies or torch.cuda.Stream(device)
        return _copied(batch, device, self._copies)

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


def _copied(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> Batch:
    """The batch on a GPU, copied on a stream of its own while the last is worked on."""
    with torch.cuda.stream(stream):
        moved = batch.to(device)
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)

    def keep(tensor: Tensor) -> Tensor:
        if tensor.is_cuda:
            tensor.record_stream(current)  # or its memory would be free when `stream` is done
        return tensor

    return map_tensors(moved, keep)


def _whole_steps(trainer: Any, num_batches: int) -> int:
    """Steps of an epoch; Lightning would make a small one of the batches that are left over."""
    limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
    num = min(limit, num_batches) if isinstance(limit, int) else int(num_batches * limit)
    if num % accumulate:
        key = "overfit_batches" if trainer.overfit_batches else "limit_train_batches"
        raise UserError(
            f"trainer.{key}={limit} is {num} batches an epoch, which do not divide by "
            f"trainer.accumulate_grad_batches={accumulate}: make it "
            f"{num - num % accumulate or accumulate}"
        )
    return int(num // accumulate)
