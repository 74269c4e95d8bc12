"""What a process that loads images can do, and what so many of them feed.

    python benchmarks/feeding.py                # CPU time an image, and what it goes to
    python benchmarks/feeding.py --workers 14   # images a second of a loader of 14 processes

COCO's photos at 800/1333, and by large-scale jitter with copy-paste; batches of 16.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Annotated, Any
from unittest import mock

import hydra
import torch
import typer
from runs import TRAIN_ALONE
from torch import Tensor
from torch.utils.data._utils import worker
from turns import recorded

from mrcnn_lightning.app.run import CONF
from mrcnn_lightning.data import dataset as dataset_module
from mrcnn_lightning.data.bands import ImageFormat
from mrcnn_lightning.data.datamodule import COCODataModule
from mrcnn_lightning.data.loader import TimedLoader
from mrcnn_lightning.structures import Batch, map_tensors

BATCH = 16
KINDS = {
    "800/1333": ["data.train_transforms.0.min_size=[800]"],
    "large-scale jitter and copy-paste": ["data=coco_lsj", "data.copy_paste=0.5"],
}


def loader_of(kind: str, cache: str, *, num_batches: int, num_workers: int) -> TimedLoader:
    """The loader of a training, with an epoch of so many batches at least."""
    overrides = [
        *KINDS[kind],
        *TRAIN_ALONE,
        f"data.batch_size={BATCH}",
        f"data.num_workers={num_workers}",
        f"data.train_weights=[{BATCH * num_batches // 80 + 1}]",
        f"data.cache_dir={cache}",
        "run_dir=unused",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", overrides)
    data: COCODataModule = hydra.utils.instantiate(cfg.data, with_masks=True, _convert_="all")
    data.setup("fit")
    return data.train_dataloader()


@contextmanager
def _timed(times: Counter[str]) -> Iterator[None]:
    """What the parts of loading an image take of this process, added up by name."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            result = function(*args, **kwargs)
            times[name] += time.process_time() - start
            return result

        return run

    with ExitStack() as stack:
        for owner, attribute, name in (
            (ImageFormat, "read", "reading and decoding"),
            (dataset_module, "move_objects", "resizing and other transforms"),
            (dataset_module, "paste_objects", "copy-paste"),
            (dataset_module, "image_targets", "masks"),
        ):
            function = timed(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, function))
        yield


def of_one_process(loader: TimedLoader, num_batches: int) -> dict[str, float]:
    """Milliseconds of CPU an image: of all, and of each part, as in a worker."""
    times: Counter[str] = Counter()
    assert loader.batch_sampler is not None
    keys = [each for each, _ in zip(loader.batch_sampler, range(num_batches), strict=False)]
    loader.collate_fn([loader.dataset[keys[0][0]]])  # what is made once
    is_worker = mock.patch.object(worker, "_worker_info", SimpleNamespace(id=0))
    with is_worker, _timed(times):
        start = time.process_time()
        for batch in keys:
            samples = [loader.dataset[key] for key in batch]
            before = time.process_time()
            collated = loader.collate_fn(samples)
            times["collating"] += time.process_time() - before
            before = time.process_time()
            map_tensors(collated, Tensor.share_memory_)  # as the queue between processes does
            times["handing over"] += time.process_time() - before
        total = time.process_time() - start
    num = sum(len(batch) for batch in keys)
    times["the rest"] = total - sum(times.values())
    each = {name: round(1000 * value / num, 2) for name, value in times.most_common()}
    return {"all": round(1000 * total / num, 2), **each}


def of_loader(loader: TimedLoader, num_batches: int) -> dict[str, float]:
    """Images a second once every process has given a batch, and the bytes of an image's pixels."""
    batches = iter(loader)
    for _ in range(loader.num_workers):
        next(batches)
    start, images, size = time.perf_counter(), 0, 0
    for _ in range(num_batches):
        batch: Batch = next(batches)
        images, size = images + len(batch), size + batch.images.nbytes
    seconds = time.perf_counter() - start
    return {
        "images_per_s": round(images / seconds, 1),
        "mb_an_image": round(size / images / 1e6, 2),
    }


def main(
    workers: Annotated[int, typer.Option(help="Processes; 0 looks into one.")] = 0,
    batches: Annotated[int, typer.Option(help="Of 16 images, that are measured.")] = 40,
    dry_run: Annotated[bool, typer.Option(help="One batch.")] = False,
    out: Annotated[Path | None, typer.Option(help="Append the JSON objects to it.")] = None,
) -> None:
    """Measure each kind of augmentation."""
    batches, workers = (1, min(workers, 1)) if dry_run else (batches, workers)
    torch.set_num_threads(1)  # as in a worker
    for kind in KINDS:
        with TemporaryDirectory() as cache:
            needed = batches + workers
            loader = loader_of(kind, cache, num_batches=needed, num_workers=workers)
            if workers:
                what, found = f"{workers} processes", of_loader(loader, batches)
            else:
                what, found = "CPU milliseconds an image", of_one_process(loader, batches)
            recorded({"benchmark": f"loading, {kind}", "results": {what: found}}, out)
            del loader


if __name__ == "__main__":
    typer.run(main)
