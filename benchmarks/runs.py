"""Whole runs of `python train.py`, as users start them, and what their tables say.

    python benchmarks/runs.py speed      # 300 steps on COCO's photos, fed by the loader: a GPU
    python benchmarks/runs.py accuracy   # the shapes and the balloon set, with AP

`--dry-run` takes a few steps of small images. The data is looked for in MRCNN_SHARED.
"""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from turns import ROOT, SHARED, kept_going, recorded

COCO_TINY = SHARED / "data" / "coco_tiny"
BALLOON = SHARED / "data" / "balloon"
IMAGENET = SHARED / "data" / "weights" / "mobilenet_v2_imagenet_from_int8.pth"
# Nothing is evaluated, and photos for it need not be there.
TRAIN_ALONE = [
    f"data_root={COCO_TINY}",
    "data.val_images=${data.train_images}",
    "data.val_json=${data.train_json}",
]
STEPS, WARM = 300, 100  # the first steps choose kernels, and make them
WAYS = {"plain": "false", "parts": "parts", "step": "step"}
# A run of seconds on two CPU cores, whatever it is that is run.
DRY = [
    "model=mask_rcnn_slim",
    "backbone=resnet18_slim",
    "data.resize.min_size=64",
    "data.resize.max_size=96",
    "data.train_transforms.0.min_size=[64]",
    "data.batch_size=2",
    "data.num_workers=1",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=3",
    "trainer.log_every_n_steps=1",
]
app = typer.Typer(help=__doc__)
Table = list[dict[str, float]]
DryRun = Annotated[bool, typer.Option(help="A few steps of small images.")]
Out = Annotated[Path | None, typer.Option(help="Append the JSON objects to it.")]


def run(*overrides: str, folder: Path) -> tuple[Table, float]:
    """The rows of a run's table without their gaps, and the seconds that it took.

    Raises:
        RuntimeError: it failed.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *overrides, f"run_dir={folder}"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(overrides)}: {done.stdout[-1000:].strip()}")
    seconds = time.perf_counter() - start
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value}
                for row in csv.DictReader(file)]  # fmt: skip
    return rows, seconds


def of_speed(rows: Table, warm: int) -> dict[str, float]:
    """Medians of what is logged of speed after so many steps, and the most memory.

    Args:
        rows: see `run`.
        warm: steps before those that count.
    """
    rows = [row for row in rows if row["step"] >= warm and "train/images_per_second" in row]
    speeds = [row["train/images_per_second"] for row in rows]
    memory = [row.get("train/peak_memory_device", 0.0) for row in rows]
    return {
        "images_per_s": round(statistics.median(speeds), 2),
        "slowest_images_per_s": round(min(speeds), 2),
        "data_wait": round(statistics.median(row["train/data_wait"] for row in rows), 4),
        "peak_mb": round(max(memory) * 1024, 1),
        "loss": round(rows[-1]["train/loss"], 4),
    }


def of_accuracy(rows: Table) -> dict[str, float]:
    """Box and mask AP of the last evaluation and of the best, out of 100."""
    rows = [row for row in rows if "val/box_ap" in row]
    found = {}
    for name in ("box_ap", "mask_ap"):
        values = [row[f"val/{name}"] for row in rows]
        found |= {name: round(100 * values[-1], 2), f"best_{name}": round(100 * max(values), 2)}
    return found


def _cache(folder: str) -> str:
    return f"data.cache_dir={folder}/cache"


@app.command()
def speed(
    dry_run: DryRun = False,
    way: Annotated[list[str] | None, typer.Option(help=", ".join(WAYS))] = None,
    workers: Annotated[int, typer.Option(help="Processes that load images.")] = 14,
    out: Out = None,
) -> None:
    """Train on COCO's photos at 800/1333, 16 a step, in bf16, fed by the loader."""
    precision = "bf16-mixed" if torch.cuda.is_available() else "32-true"
    overrides = [
        *TRAIN_ALONE,
        "backbone.weights=null",
        "data.train_transforms.0.min_size=[800]",
        f"data.num_workers={workers}",
        # Its 80 photos so often that there is one epoch.
        f"data.train_weights=[{16 * STEPS // 80 + 1}]",
        *([] if dry_run else ["data/canvas=fixed"]),
        "optimizer.lr=0.001",  # weights are random
        f"trainer.precision={precision}",
        f"trainer.max_steps={STEPS}",
        "trainer.limit_val_batches=0",
        "trainer.num_sanity_val_steps=0",
        "callbacks=no_early_stopping",
        "callbacks.best=null",
        "callbacks.last_within_epoch=null",
        *(DRY if dry_run else []),
    ]
    # Kernels take minutes on a CPU.
    for each in ["plain"] if dry_run else way or list(WAYS):
        title = f"loader-fed training, 16 a step, {workers} workers, {precision}"
        with kept_going(f"{title}: {each}", out), tempfile.TemporaryDirectory() as folder:
            more = [_cache(folder), f"task.compiled={WAYS[each]}"]
            rows, seconds = run(*overrides, *more, folder=Path(folder, "run"))
            figures: dict[str, Any] = of_speed(rows, 0 if dry_run else WARM)
            figures["run_s"] = round(seconds, 1)
            recorded({"benchmark": title, "results": {each: figures}}, out)


@app.command()
def accuracy(dry_run: DryRun = False, out: Out = None) -> None:
    """Train on the shapes and on the balloon set, and score."""
    with tempfile.TemporaryDirectory() as folder:
        sets: dict[str, list[str]] = {
            "shapes": [f"data_root={folder}/shapes"],
            "balloon": [f"data_root={BALLOON}", f"backbone.weights={IMAGENET}"],
        }
        for name, overrides in sets.items():
            if dry_run:
                overrides = [*overrides, *DRY, "trainer.limit_val_batches=1"]
                overrides += ["backbone.weights=null", "trainer.check_val_every_n_epoch=1"]
            with kept_going(f"AP, experiment={name}", out):
                rows, seconds = run(
                    f"experiment={name}",
                    _cache(folder),
                    *overrides,
                    folder=Path(folder, "run", name),
                )
                figures = of_accuracy(rows) | of_speed(rows, 0) | {"run_s": round(seconds, 1)}
                recorded({"benchmark": f"AP, experiment={name}", "results": {"ours": figures}}, out)


if __name__ == "__main__":
    app()
