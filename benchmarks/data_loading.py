"""Images and masks for training at 800/1333: this project against torchvision's reference pipeline.

python benchmarks/data_loading.py --quick             # coco_tiny, speed of one worker
python benchmarks/data_loading.py --objects 1000000   # and memory of 1 and 4 workers
"""

import json
import os
import random
import re
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pycocotools.mask
import torch
import torchvision
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2
from turns import SHARED, in_own_process, in_turns, report

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.dataset import COCODataset, collate
from mrcnn_lightning.data.sizing import PadToMultiple
from mrcnn_lightning.data.transforms import compose_transforms

PEER = "torchvision reference"
COCO_TINY = SHARED / "data" / "coco_tiny"
CANVAS = PadToMultiple(multiple=32)
SHARE = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def our_dataset(images: Path, file: Path, cache: str) -> COCODataset:
    """This project's dataset, as its COCO recipes make it, but always at 800/1333."""
    return COCODataset(
        Annotations.load(file, cache_dir=cache),
        folder=images,
        transform=compose_transforms(
            [v2.RandomShortestSize([800], max_size=1333), v2.RandomHorizontalFlip(0.5)]
        ),
        mini_mask_size=112,
        skip_empty=False,
        max_objects=None,
        boxes_from="file",
        copy_paste=0.0,
        skip_damaged=False,
        seed=0,
    )


class Reference(Dataset[Any]):
    """What torchvision's detection references do: full-size masks of polygons, flip, float."""

    def __init__(self, images: Path, file: Path) -> None:
        self.coco = torchvision.datasets.CocoDetection(str(images), str(file))
        self.flip = v2.RandomHorizontalFlip(0.5)

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        image, annotations = self.coco[index]
        objects = [each for each in annotations if each.get("iscrowd", 0) == 0]
        boxes = torch.tensor([each["bbox"] for each in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [self._mask(each["segmentation"], image) for each in objects]
        size = (image.height, image.width)
        target = {
            "boxes": torchvision.tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([each["category_id"] for each in objects], dtype=torch.int64),
            "masks": torchvision.tv_tensors.Mask(
                torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.uint8)
            ),
        }
        image, target = self.flip(v2.functional.pil_to_tensor(image), target)
        return v2.functional.to_dtype(image, torch.float32, scale=True), target

    @staticmethod
    def _mask(polygons: list[list[float]], image: Image.Image) -> Tensor:
        rles = pycocotools.mask.frPyObjects(polygons, image.height, image.width)
        return torch.from_numpy(pycocotools.mask.decode(rles)).any(dim=2).to(torch.uint8)


def load_ours(images: Path, file: Path, cache: str) -> Callable[[], None]:
    """All images in batches of 2, on one canvas each, as a worker hands them out."""
    dataset = our_dataset(images, file, cache)

    def load() -> None:
        for first in range(0, len(dataset), 2):
            numbers = range(first, min(first + 2, len(dataset)))
            collate([dataset[0, number] for number in numbers], canvas=CANVAS)

    return load


def load_reference(images: Path, file: Path, *, resize: bool) -> Callable[[], None]:
    """All images, and the model's own resizing of them and of their masks (not its batching)."""
    dataset = Reference(images, file)
    transform = GeneralizedRCNNTransform(800, 1333, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def load() -> None:
        for index in range(len(dataset)):
            image, target = dataset[index]
            if resize:
                transform.resize(image, target)

    return load


def synthetic_set(folder: Path, num_objects: int) -> None:
    """A COCO-format file of small images with 10 polygons of 12 points each."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(16):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    images, annotations = [], []
    for image in range(num_objects // 10):
        name = f"{image % 16}.jpg"
        images.append({"id": image, "file_name": name, "height": 48, "width": 64})
        for x, y, radius in rng.uniform([10, 10, 3], [54, 38, 10], (10, 3)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": [x - radius, y - radius, 2 * radius, 2 * radius],
                    "area": float(np.pi * radius**2),
                    "iscrowd": 0,
                    "segmentation": [((x, y) + radius * circle).round(2).ravel().tolist()],
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "disc"}],
    }
    (folder / "annotations.json").write_text(json.dumps(content))


class AnyOf(Dataset[Any]):
    """An image of another dataset for each index, so that a worker sees all of its annotations."""

    def __init__(self, dataset: Any, is_ours: bool) -> None:
        self.dataset = dataset
        self.is_ours = is_ours

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> int:
        if self.is_ours:
            self.dataset.annotations.objects(index)
        else:
            self.dataset.coco._load_target(self.dataset.coco.ids[index])
        return index


def megabytes_with(dataset: Any, num_workers: int, is_ours: bool) -> float:
    """Memory of this process and its workers, shared pages counted once, after 20,000 images."""
    order = random.Random(0).sample(range(len(dataset)), min(20_000, len(dataset)))
    loader = DataLoader(
        AnyOf(dataset, is_ours),
        sampler=order,
        batch_size=100,
        num_workers=num_workers,
        multiprocessing_context="fork",  # Linux's own, which this process was not started by
    )
    batches = iter(loader)
    for _ in range(len(loader) - 2 * num_workers - 1):
        next(batches)
    workers = [worker.pid for worker in batches._workers]  # type: ignore[union-attr]
    shares = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (os.getpid(), *workers)]
    return sum(int(SHARE.findall(share)[0]) for share in shares) / 1024


def _measure(folder: Path, is_ours: bool) -> dict[int, float]:
    warnings.filterwarnings("ignore", "This DataLoader will create")
    images, file = folder / "images", folder / "annotations.json"
    dataset = our_dataset(images, file, str(folder)) if is_ours else Reference(images, file)
    return {num: megabytes_with(dataset, num, is_ours) for num in (1, 4)}


def _opening(file: Path, cache: Path) -> dict[str, float]:
    """What it takes to pack a file, or, once it is packed, to have its masks as ground truth."""
    is_packed = any(cache.glob("*.pt"))
    started = time.perf_counter()
    annotations = Annotations.load(file, cache_dir=cache)
    if is_packed:
        truth = annotations.ground_truth(annotations.image_ids.tolist(), of_masks=True)
        assert len(truth["annotations"]) == len(annotations.labels)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 1), "peak_mb": round(peak)}


def memory(num_objects: int) -> dict[str, dict[str, float]]:
    """Memory with 1 and 4 workers on a large synthetic file, ours and the peer's."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_set(folder, num_objects)
        for what in ("opening", "ground truth"):
            found[what] = in_own_process(_opening, folder / "annotations.json", folder)
            print(f"{what}: {found[what]['seconds']} s, at most {found[what]['peak_mb']} MB")
        for contender in ("ours", PEER):
            values = in_own_process(_measure, folder, contender == "ours")
            found[contender] = {
                "1_worker_mb": round(values[1], 1),
                "4_workers_mb": round(values[4], 1),
                "growth": round(values[4] / values[1], 3),
            }
    table = Table(title=f"memory, {num_objects:,} objects", title_justify="left")
    for column in ("contender", "1 worker", "4 workers", "growth"):
        table.add_column(column, justify="right")
    for contender in ("ours", PEER):
        row = found[contender]
        cells = (f"{row['1_worker_mb']:.0f} MB", f"{row['4_workers_mb']:.0f} MB")
        table.add_row(contender, *cells, f"{row['growth']:.2f}")
    Console(width=110).print(table)
    return found


def main(
    quick: Annotated[bool, typer.Option(help="The speed alone, in fewer rounds.")] = False,
    objects: Annotated[int, typer.Option(help="Of the file that memory is measured with.")] = 10**6,
    rounds: Annotated[int, typer.Option(help="How often each has a turn.")] = 5,
    data: Annotated[Path, typer.Option(help="A set in COCO's layout.")] = COCO_TINY,
) -> None:
    """Time loading by each contender in turns, and weigh their workers."""
    images, file = data / "train2017", data / "annotations" / "instances_train2017.json"
    if not images.is_dir() or not file.is_file():
        raise SystemExit(f"{images} or {file} is not here: give --data a folder of COCO's layout")
    figures = {} if quick else {"memory": memory(objects)}
    torch.set_num_threads(1)  # as in a worker
    with tempfile.TemporaryDirectory() as cache:
        works = {
            "ours": load_ours(images, file, cache),
            PEER: load_reference(images, file, resize=True),
            f"{PEER}, without resizing": load_reference(images, file, resize=False),
        }
        seconds = in_turns(works, rounds=3 if quick else rounds)
    report(
        f"loading at 800/1333 with masks, one worker, {data.name}",
        seconds,
        peer=PEER,
        work=len(Reference(images, file)),
        unit="images",
        **figures,
    )


if __name__ == "__main__":
    typer.run(main)
