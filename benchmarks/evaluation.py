"""COCO evaluation of boxes and masks: this project against pycocotools and torchmetrics.

    python benchmarks/evaluation.py --quick          # 100 images
    python benchmarks/evaluation.py --growth         # 1,000 images; ours also for 100 and 5,000

The work starts with what a model gives, 100 boxes and masks of 28x28 an image, and ends with AP.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pycocotools.mask
import torch
import typer
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection.roi_heads import paste_masks_in_image
from turns import in_turns, peak_megabytes, report

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.evaluation.coco import IOU_TYPES, COCOMetric
from mrcnn_lightning.evaluation.scoring import NUMBERS
from mrcnn_lightning.results.image_detections import per_image
from mrcnn_lightning.results.pasting import resized_crops
from mrcnn_lightning.structures import Batch, Detections

PEER = "torchvision + pycocotools"
HEIGHT, WIDTH = 480, 640
NUM_CLASSES, NUM_OBJECTS, NUM_DETECTIONS, MASK = 80, 7, 100, 28
Results = dict[str, float]


def ground_truth(num_images: int) -> dict[str, Any]:
    """Images with elliptic objects, in COCO's format."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    annotations = []
    for image in range(1, num_images + 1):
        for _ in range(NUM_OBJECTS):
            width, height = np.exp(rng.uniform(np.log(12), np.log(300), 2))
            x, y = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
            xs = x + width / 2 * (1 + np.cos(angles))
            ys = y + height / 2 * (1 + np.sin(angles))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.integers(1, NUM_CLASSES + 1)),
                    "bbox": [x, y, width, height],
                    "area": float(np.pi * width * height / 4),
                    "iscrowd": 0,
                    "segmentation": [np.stack([xs, ys], 1).ravel().tolist()],
                }
            )
    return {
        "images": [
            {"id": image, "file_name": f"{image}.jpg", "height": HEIGHT, "width": WIDTH}
            for image in range(1, num_images + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, NUM_CLASSES + 1)],
    }


def detections(truth: dict[str, Any]) -> list[Detections]:
    """What a model gives for each image: its objects, several times and not quite, and others."""
    rng = torch.Generator().manual_seed(0)
    cells = (torch.arange(MASK) + 0.5) / MASK * 2 - 1
    blob = 4 * (1 - (cells[:, None] ** 2 + cells**2))
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.float32)
    objects = torch.tensor([annotation["bbox"] for annotation in truth["annotations"]])
    labels = torch.tensor([annotation["category_id"] for annotation in truth["annotations"]])
    found = []
    for image in range(len(truth["images"])):
        own = torch.randint(NUM_OBJECTS, (NUM_DETECTIONS,), generator=rng) + image * NUM_OBJECTS
        sides = objects[own, 2:].repeat(1, 2)
        boxes = torch.cat([objects[own, :2], objects[own, :2] + objects[own, 2:]], dim=1)
        boxes = boxes + sides * 0.15 * torch.randn(NUM_DETECTIONS, 4, generator=rng)
        boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1)
        others = torch.randint(1, NUM_CLASSES + 1, (NUM_DETECTIONS,), generator=rng)
        is_other = torch.rand(NUM_DETECTIONS, generator=rng) < 0.3
        noise = torch.randn(NUM_DETECTIONS, MASK, MASK, generator=rng)
        found.append(
            Detections(
                boxes=torch.minimum(boxes.clamp(min=0), limit)[None],
                scores=torch.rand(NUM_DETECTIONS, generator=rng).sort(descending=True).values[None],
                labels=torch.where(is_other, others, labels[own])[None],
                masks=(blob + 0.5 * noise).sigmoid()[None],
            )
        )
    return found


def evaluate_ours(file: Path, found: list[Detections]) -> Results:
    """This project's metric, as in validation."""
    annotations = Annotations.load(file, cache_dir=file.parent)
    metric = COCOMetric(
        annotations.ground_truth,
        category_ids=range(1, NUM_CLASSES + 1),
        class_names=[f"class {k}" for k in range(1, NUM_CLASSES + 1)],
        has_masks=True,
        max_detections=100,
    )
    for image_id, detected in enumerate(found, start=1):
        metric.update(per_image(detected, _batch(image_id), resized_crops))
    return {name: value for name, value in metric.compute().items() if "/" not in name}


def _batch(image_id: int) -> Batch:
    return Batch(
        images=torch.zeros(1, 3, 1, 1, dtype=torch.uint8),
        image_ids=torch.tensor([image_id]),
        windows=torch.tensor([[0.0, 0.0, WIDTH, HEIGHT]]),
        scales=torch.ones(1, 2, dtype=torch.float64),
        original_sizes=torch.tensor([[HEIGHT, WIDTH]]),
        seeds=torch.zeros(1, dtype=torch.int64),
        targets=None,
    )


def _pasted(detected: Detections) -> Tensor:
    assert detected.masks is not None
    return (
        paste_masks_in_image(detected.masks[0][:, None], detected.boxes[0], (HEIGHT, WIDTH)) > 0.5
    )


def evaluate_plainly(file: Path, found: list[Detections]) -> Results:
    """Torchvision's pasting, pycocotools' encoding and scoring."""
    results = []
    for image_id, detected in enumerate(found, start=1):
        masks = np.asfortranarray(_pasted(detected)[:, 0].permute(1, 2, 0).numpy().view(np.uint8))
        rles = pycocotools.mask.encode(masks)
        x1, y1, x2, y2 = detected.boxes[0].double().unbind(1)
        boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1).tolist()
        scores, labels = detected.scores[0].tolist(), detected.labels[0].tolist()
        results += [
            {
                "image_id": image_id,
                "category_id": label,
                "bbox": box,
                "score": score,
                "segmentation": rle,
            }
            for box, score, label, rle in zip(boxes, scores, labels, rles, strict=True)
        ]
    metrics: Results = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        for kind, iou_type in IOU_TYPES.items():
            if kind == "mask":
                results = [{k: v for k, v in each.items() if k != "bbox"} for each in results]
            evaluation = COCOeval(truth, truth.loadRes(results), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            metrics |= {
                f"{kind}_{name}": float(value)
                for name, value in zip(NUMBERS, evaluation.stats, strict=True)
            }
    return metrics


def evaluate_by_torchmetrics(file: Path, found: list[Detections]) -> Results:
    """Torchmetrics' MeanAveragePrecision on boxes and pasted masks."""
    metric = MeanAveragePrecision(iou_type=("bbox", "segm"))
    truth = json.loads(file.read_bytes())
    for image_id, detected in enumerate(found, start=1):
        own = truth["annotations"][(image_id - 1) * NUM_OBJECTS : image_id * NUM_OBJECTS]
        boxes = torch.tensor([each["bbox"] for each in own])
        rles = [pycocotools.mask.frPyObjects(each["segmentation"], HEIGHT, WIDTH) for each in own]
        masks = np.concatenate([pycocotools.mask.decode(rle) for rle in rles], axis=2)
        metric.update(
            [
                {
                    "boxes": detected.boxes[0],
                    "scores": detected.scores[0],
                    "labels": detected.labels[0],
                    "masks": _pasted(detected)[:, 0],
                }
            ],
            [
                {
                    "boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
                    "labels": torch.tensor([each["category_id"] for each in own]),
                    "masks": torch.from_numpy(masks).permute(2, 0, 1).bool(),
                    "area": torch.tensor([each["area"] for each in own]),
                }
            ],
        )
    values = metric.compute()
    return {
        f"{kind}_ap{suffix}": float(values[f"{iou_type}_map{theirs}"])
        for kind, iou_type in IOU_TYPES.items()
        for suffix, theirs in (("", ""), ("50", "_50"), ("75", "_75"))
    }


CONTENDERS = {
    "ours": evaluate_ours,
    PEER: evaluate_plainly,
    "torchmetrics": evaluate_by_torchmetrics,
}


def contender(name: str, folder: str, num_images: int) -> Callable[[], Results]:
    """One contender's work on so many images."""
    file = Path(folder, f"{num_images}.json")
    truth = ground_truth(num_images)
    file.write_text(json.dumps(truth))
    return partial(CONTENDERS[name], file, detections(truth))


def main(
    quick: Annotated[bool, typer.Option(help="100 images.")] = False,
    growth: Annotated[bool, typer.Option(help="Ours for 100, 1,000 and 5,000 images too.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each has a turn.")] = 3,
) -> None:
    """Time evaluation by each contender in turns."""
    num_images = 100 if quick else 1000
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        works = {name: contender(name, folder, num_images) for name in CONTENDERS}
        numbers: dict[str, Results] = {}

        def keep(name: str) -> None:
            numbers[name] = works[name]()

        timed = {name: partial(keep, name) for name in works}
        seconds = in_turns(timed, rounds=rounds, warmup=0)
        for name in list(works)[1:]:
            largest = max(abs(numbers["ours"][key] - numbers[name][key]) for key in numbers[name])
            figures[f"largest_difference_to_{name}"] = largest
            print(f"largest difference to {name}: {largest:.1e}")
        figures["numbers"] = numbers["ours"]
        if growth:
            works.clear()
            figures["growth"] = {}
            for num in (100, 1000, 5000):
                work = contender("ours", folder, num)
                median = sorted(in_turns({"ours": work}, rounds=3, warmup=0)["ours"])[1]
                figures["growth"][num] = round(median, 3)
                print(f"ours, {num} images: {median:.2f} s, {median / num * 1000:.2f} ms an image")
        report(
            f"evaluation, {num_images} images of {WIDTH}x{HEIGHT}, {NUM_DETECTIONS} detections",
            seconds,
            peer=PEER,
            work=num_images,
            unit="images",
            megabytes={
                name: peak_megabytes(contender, name, folder, num_images) for name in CONTENDERS
            }
            if quick
            else None,
            **figures,
        )


if __name__ == "__main__":
    typer.run(main)
