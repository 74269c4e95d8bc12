"""Time and memory of checking and repairing a generated set of a million objects.

python benchmarks/data_check.py --quick    # 50,000 objects
python benchmarks/data_check.py            # 1,000,000
"""

import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pycocotools.mask
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from turns import device_name, in_own_process

from mrcnn_lightning.app.data_commands.training_size import training_size
from mrcnn_lightning.data.checking.check import check
from mrcnn_lightning.data.checking.repair import repair

SIDE, PER_IMAGE, CLASSES, POINTS = 128, 10, 80, 24
# Every so many objects are damaged in one of these ways.
DAMAGED = 1000
DAMAGES: list[dict[str, Any]] = [
    {"bbox": [5, 5, 0, 3]},
    {"bbox": [1e5, 5, 4, 3]},
    {"bbox": [1, 2, "3", 4]},
    {"category_id": 999},
    {"iscrowd": "no"},
    {"segmentation": [[1, 1, 5, 5]]},
    {"segmentation": {"size": [SIDE, SIDE], "counts": [1, 2, 3]}},
    {"id": 1},
]


def _object(number: int, generator: random.Random) -> dict[str, Any]:
    x, y = (generator.uniform(20, SIDE - 20) for _ in range(2))
    radius = generator.uniform(4, 18)
    angles = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
    polygon = points.round(2).ravel().tolist()
    segmentation: Any = [polygon]
    if number % 10 == 0:
        rle = pycocotools.mask.frPyObjects([polygon], SIDE, SIDE)[0]
        segmentation = {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}
    annotation = {
        "id": number + 1,
        "image_id": number // PER_IMAGE,
        "category_id": generator.randrange(CLASSES),
        "bbox": [x - radius, y - radius, 2 * radius, 2 * radius],
        "area": 3.1 * radius**2,
        "iscrowd": 0,
        "segmentation": segmentation,
    }
    is_damaged = number % DAMAGED == DAMAGED - 1
    return annotation | (DAMAGES[number // DAMAGED % len(DAMAGES)] if is_damaged else {})


def write_set(folder: Path, num_objects: int) -> None:
    """A file of so many objects, written one by one, and an image of noise for each ten."""
    generator, noise = random.Random(0), np.random.default_rng(0)
    (folder / "images").mkdir()
    images = []
    for number in range(num_objects // PER_IMAGE):
        pixels = noise.integers(0, 256, (16, 16), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png", compress_level=1)
        entry = {"id": number, "file_name": f"{number}.png"}
        images.append(entry | {"height": SIDE, "width": SIDE})
    categories = [{"id": number, "name": f"class {number}"} for number in range(CLASSES)]
    with (folder / "set.json").open("w") as file:
        head = json.dumps({"images": images, "categories": categories})
        file.write(head[:-1] + ', "annotations": [')
        for number in range(num_objects):
            file.write(",\n" * (number > 0) + json.dumps(_object(number, generator)))
        file.write("]}")


def measure(folder: Path, with_repair: bool) -> dict[str, Any]:
    """Seconds and the peak of memory of a process that does nothing else."""
    size = training_size()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    checked = check(folder / "set.json", folder / "images", size=size)
    if with_repair:
        repaired = repair(
            folder / "set.json", folder / "images", folder / "new.json", checked=checked, size=size
        )
        checked = repaired.checked
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "before_mb": round(before / 1024),
        "found": {fault.name: fault.count for fault in checked.found()},
    }


def main(
    quick: Annotated[bool, typer.Option(help="50,000 objects.")] = False,
    objects: Annotated[int, typer.Option(help="How many are generated.")] = 10**6,
) -> None:
    """Check and repair a generated set."""
    num_objects = 50_000 if quick else objects
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder, num_objects)
        megabytes = round((folder / "set.json").stat().st_size / 2**20)
        print(f"{num_objects:,} objects: {megabytes} MB of JSON")
        results = {
            "check": in_own_process(measure, folder, False),
            "check and repair": in_own_process(measure, folder, True),
        }
    table = Table(title=f"{num_objects:,} objects", title_justify="left")
    for column in ("work", "time", "peak memory", "before"):
        table.add_column(column, justify="right")
    for work, result in results.items():
        memory = (f"{result[key]} MB" for key in ("peak_mb", "before_mb"))
        table.add_row(work, f"{result['seconds']} s", *memory)
    Console(width=110).print(table)
    print(json.dumps({"objects": num_objects, "device": device_name(), "results": results}))


if __name__ == "__main__":
    typer.run(main)
