"""COCO's average precision as a metric over batches and processes.

I images, N detections of all images.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mrcnn_lightning.evaluation.scoring import Found, score
from mrcnn_lightning.results.image_detections import ImageDetections

IOU_TYPES = {"box": "bbox", "mask": "segm"}
_STATES = {
    "image_ids": torch.int64,  # (I,) images seen, those without detections included
    "image_sizes": torch.int64,  # (2 I,) height and width
    "num_detections": torch.int64,  # (I,)
    "boxes": torch.float64,  # (4 N,)
    "scores": torch.float64,  # (N,)
    "labels": torch.int64,  # (N,)
    "rle_lengths": torch.int64,  # (N,), nothing without masks
    "rles": torch.uint8,  # (all bytes,)
}


@dataclass
class Evaluated:
    """What curves and tables of an evaluation are made of."""

    images: list[ImageDetections]  # without masks
    objects: dict[int, list[dict[str, Any]]]  # of each image, in COCO's format, with boxes
    # Of boxes and of masks, see `Scores`.
    precision: dict[str, npt.NDArray[np.float64]]


class COCOMetric(Metric):
    """Box and mask AP over the images seen, on any number of processes.

    The state is the detections alone, as flat tensors; ground truth is what every process has in
    its file. An image that was seen twice (samplers repeat some to even out the ranks) counts once.

    Args:
        ground_truth: gives the images of some ids, their objects and the categories in COCO's
            format, objects with boxes or, told `of_masks=True`, with run lengths (see
            `Annotations.ground_truth`); or None if only `results` are wanted.
        category_ids: the file's ids of the labels 1..K.
        class_names: their names.
        has_masks: whether detections have masks.
        max_detections: that the model gives of an image.

    Attributes:
        evaluated: of the last `compute`, on rank 0.
    """

    full_state_update = False

    def __init__(
        self,
        ground_truth: Callable[..., dict[str, Any]] | None,
        *,
        category_ids: Sequence[int],
        class_names: Sequence[str],
        has_masks: bool,
        max_detections: int,
    ) -> None:
        super().__init__()
        self.ground_truth = ground_truth
        self.category_ids = list(category_ids)
        self.class_names = list(class_names)
        self.has_masks = has_masks
        self.max_detections = max_detections
        self.evaluated: Evaluated | None = None
        for name in _STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, detections: Sequence[ImageDetections]) -> None:
        """Add images, each with all its detections, best first."""
        rles = [rle for image in detections for rle in image.rles or []]
        values = {
            "image_ids": torch.tensor([image.image_id for image in detections]),
            "image_sizes": torch.tensor([image.size for image in detections]).flatten(),
            "num_detections": torch.tensor([len(image.labels) for image in detections]),
            "boxes": torch.cat([image.boxes.flatten() for image in detections]),
            "scores": torch.cat([image.scores for image in detections]),
            "labels": torch.cat([image.labels for image in detections]),
            "rle_lengths": torch.tensor([len(rle) for rle in rles]),
            "rles": torch.from_numpy(np.array(bytearray(b"".join(rles)), dtype=np.uint8)),
        }
        for name, dtype in _STATES.items():
            getattr(self, name).append(values[name].to(self._home, dtype))

    @property
    def _home(self) -> torch.device:
        """Where the state is: on the host (Apple's GPUs have no float64) unless NCCL gathers it."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over ranks; one that saw no image takes part with empty tensors."""
        for name, dtype in _STATES.items():
            if not getattr(self, name):
                setattr(self, name, [torch.empty(0, dtype=dtype, device=self._home)])
        super().sync(*args, **kwargs)

    def results(self) -> list[dict[str, Any]]:
        """All ranks' detections in COCO's results format; boxes are x, y, width, height.

        They are built on rank 0, others get none.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self._results(self._images()) if _is_first() else []

    def compute(self) -> dict[str, float]:
        """`box_ap`, `mask_ap` and so on, and `box_ap/NAME` of each class.

        They are those of `number_names`, or of `LVIS_NUMBERS` where the file is in LVIS's format.
        A number is -1 where there is nothing to find; such classes are left out. Rank 0 computes
        them for all.
        """
        metrics = self.compute_here() if _is_first() else {}
        if distributed.is_initialized():
            told = [metrics]
            distributed.broadcast_object_list(told, device=self.device)
            metrics = told[0]
        return metrics

    def on_host(self) -> "COCOMetric":
        """A copy with this process's state, which another process can be given."""
        copy = COCOMetric(
            self.ground_truth,
            category_ids=self.category_ids,
            class_names=self.class_names,
            has_masks=self.has_masks,
            max_detections=self.max_detections,
        )
        for name in _STATES:
            setattr(copy, name, [dim_zero_cat(getattr(self, name)).cpu()])
        return copy

    def compute_here(self) -> dict[str, float]:
        """What `compute` gives, of this process's state alone."""
        images = self._images()
        found = _found(images.values(), self.category_ids)
        self.evaluated = Evaluated([replace(image, rles=None) for image in images.values()], {}, {})
        metrics: dict[str, float] = {}
        for kind, iou_type in IOU_TYPES.items():
            if kind == "box" or self.has_masks:
                metrics |= self._score(found, sorted(images), kind, iou_type)
        return metrics

    def _results(self, images: dict[int, ImageDetections]) -> list[dict[str, Any]]:
        return [result for image in images.values() for result in image.to_coco(self.category_ids)]

    def _images(self) -> dict[int, ImageDetections]:
        """The detections of each image, the first time that it was seen."""
        state = {name: dim_zero_cat(getattr(self, name)).cpu() for name in _STATES}
        rles = state["rles"].numpy().tobytes()
        ends = [0, *accumulate(state["rle_lengths"].tolist())]
        images: dict[int, ImageDetections] = {}
        last = 0
        for image_id, (height, width), num in zip(
            state["image_ids"].tolist(),
            state["image_sizes"].view(-1, 2).tolist(),
            state["num_detections"].tolist(),
            strict=True,
        ):
            first, last = last, last + num
            if image_id in images:
                continue
            images[image_id] = ImageDetections(
                image_id=image_id,
                size=(height, width),
                boxes=state["boxes"].view(-1, 4)[first:last],
                scores=state["scores"][first:last],
                labels=state["labels"][first:last],
                rles=[rles[ends[n] : ends[n + 1]] for n in range(first, last)]
                if self.has_masks
                else None,
            )
        return images

    def _score(
        self, found: Found, image_ids: list[int], kind: str, iou_type: str
    ) -> dict[str, float]:
        assert self.ground_truth is not None
        assert self.evaluated is not None
        truth = self.ground_truth(image_ids, of_masks=kind == "mask")
        if kind == "box":
            self.evaluated.objects = _by_image(truth["annotations"])
        scores = score(
            truth,
            found,
            iou_type=iou_type,
            category_ids=self.category_ids,
            max_detections=self.max_detections,
        )
        self.evaluated.precision[kind] = scores.precision
        metrics = {f"{kind}_{name}": value for name, value in scores.numbers.items()}
        for name, ap in zip(self.class_names, scores.per_class.tolist(), strict=True):
            if ap > -1:
                metrics[f"{kind}_ap/{name}"] = ap
        return metrics


def _found(images: Collection[ImageDetections], category_ids: Sequence[int]) -> Found:
    """The detections of images, of which there is one or more."""
    numbers = [len(image) for image in images]
    corners = torch.cat([image.boxes for image in images]).numpy()
    labels = torch.cat([image.labels for image in images]).numpy()
    rles = [{"size": image.size, "counts": rle} for image in images for rle in image.rles or []]
    return Found(
        image_ids=np.repeat([image.image_id for image in images], numbers),
        category_ids=np.array(category_ids)[labels - 1],
        scores=torch.cat([image.scores for image in images]).numpy(),
        boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
        rles=rles or None,
    )


def _by_image(annotations: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in annotations:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    return objects


def _is_first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0
