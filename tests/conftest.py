"""What several tests need: models built from the configuration, data sets, batches."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from mrcnn_lightning.app.run import CONF, main
from mrcnn_lightning.data.shapes import generate_shapes
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.structures import Batch, Targets

ROOT = Path(__file__).parent.parent
# Real data and reference values, which the project does not carry.
SHARED = Path(os.environ.get("MRCNN_SHARED", ROOT.parent / "shared"))

torch.set_num_threads(1)  # small tensors; several test processes share the cores
os.environ.setdefault("WANDB_SILENT", "true")
if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
    # Freed memory is kept, not given back and taken anew for every model: M_TRIM_THRESHOLD, and
    # M_MMAP_MAX of glibc's malloc.h.
    libc.mallopt(-1, 2**31 - 1)
    libc.mallopt(-4, 0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights do not depend on which tests ran before."""
    torch.manual_seed(0)


def shared(path: str) -> Path:
    """A file of the real data, or a skip."""
    if not (SHARED / path).exists():
        pytest.skip(f"real data is not here: {SHARED / path} (MRCNN_SHARED names its folder)")
    return SHARED / path


def compose(*overrides: str) -> DictConfig:
    """The configuration of a command line."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", overrides=[*overrides, "run_dir=unused"])


# The backbones that the models were published with, where it is not resnet50.
BACKBONES = {
    "mask_rcnn_v2": "resnet50_bn",
    "faster_rcnn_v2": "resnet50_bn",
    "faster_rcnn_mobilenet_v3": "mobilenet_v3_large_c5",
    "mask_rcnn_d2": "resnet50_caffe",
    "faster_rcnn_d2": "resnet50_caffe",
    "cascade_mask_rcnn": "resnet50_caffe",
    "mask_rcnn_d2_c4": "resnet50_caffe_c4",
    "mask_rcnn_d2_dc5": "resnet50_caffe_dc5",
    "mask_rcnn_d2_gn": "resnet50_gn",
    "mask_rcnn_d2_lsj": "resnet50_caffe_sync_bn",
    "matterport": "resnet101_tensorflow",
    "faster_rcnn_vgg16": "vgg16_conv5",
    "mask_rcnn_slim": "resnet18_slim",
    "mask_rcnn_light": "mobilenet_v2",
}


def published(model: str) -> list[str]:
    """Overrides for a model with the backbone that it was published with."""
    return [f"model={model}", f"backbone={BACKBONES.get(model, 'resnet50')}"]


def build_model(*overrides: str, class_names: list[str] | None = None) -> Detector:
    """A model as the command line composes it, with random weights."""
    cfg = compose("backbone.weights=null", *overrides)
    config = OmegaConf.to_container(cfg.model, resolve=True)
    make: Callable[..., Detector] = hydra.utils.instantiate(config, _convert_="all")
    return make(class_names=class_names or ["disc", "box", "triangle"])


def make_batch(
    sizes: list[tuple[int, int]],
    boxes: list[list[list[float]]],
    labels: list[list[int]],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Noise images of some sizes on one canvas, with objects whose masks are full-size ellipses."""
    generator = torch.Generator().manual_seed(seed)
    height = -(-max(size[0] for size in sizes) // 32) * 32
    width = -(-max(size[1] for size in sizes) // 32) * 32
    images = torch.zeros(len(sizes), 3, height, width, dtype=torch.uint8)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w] = torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8)
    most = max(1, *(len(objects) for objects in boxes))
    gt_boxes = torch.zeros(len(sizes), most, 4, dtype=dtype)
    gt_labels = torch.zeros(len(sizes), most, dtype=torch.int64)
    masks = torch.zeros(len(sizes), most, height, width, dtype=torch.uint8)
    y = torch.arange(height)[:, None] + 0.5
    x = torch.arange(width) + 0.5
    for i, objects in enumerate(boxes):
        for g, (x1, y1, x2, y2) in enumerate(objects):
            gt_boxes[i, g] = torch.tensor([x1, y1, x2, y2])
            gt_labels[i, g] = labels[i][g]
            dx, dy = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
            masks[i, g] = dx**2 + dy**2 <= 1
    frames = torch.tensor([0, 0, width, height], dtype=dtype).expand(len(sizes), most, 4)
    return Batch(
        images=images,
        image_ids=torch.arange(len(sizes)),
        windows=torch.tensor([[0.0, 0.0, w, h] for h, w in sizes], dtype=dtype),
        scales=torch.ones(len(sizes), 2, dtype=torch.float64),
        original_sizes=torch.tensor(sizes),
        seeds=torch.arange(len(sizes)) + 1000 * seed,
        targets=Targets(
            boxes=gt_boxes,
            labels=gt_labels,
            crowd=torch.zeros(len(sizes), most, dtype=torch.bool),
            masks=masks,
            mask_frames=frames.clone(),
        ),
    )


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated set."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(root=str(root), num_train=24, num_val=10, image_size=64, max_objects=4, seed=0)
    return root


@pytest.fixture
def tiny(shapes_root: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides of a run that takes a second: the small set, a small model."""

    def overrides(*more: Any) -> list[str]:
        return [
            "experiment=shapes",
            f"data_root={shapes_root}",
            f"data.cache_dir={tmp_path}/cache",
            "data.prepare=null",
            "data.resize.min_size=64",
            "data.resize.max_size=64",
            "backbone.width=8",
            "model.neck.out_channels=16",
            "model.box_head.trunk.hidden=32",
            "model.rpn.anchors.sizes=[[8],[16],[32],[48],[64]]",
            "model.roi_sampler.num_rois=16",
            # Drawn in a second each, and tested where trackers are.
            "++callbacks.precision_recall=null",
            "++callbacks.confusion_matrix=null",
            *more,
        ]

    return overrides


def command(
    *arguments: str,
    cwd: Path,
    wait: bool = True,
    program: Sequence[str] = (sys.executable, str(ROOT / "train.py")),
) -> "subprocess.Popen[str]":
    """`python train.py ...` as a user starts it, its output caught."""
    process = subprocess.Popen(
        [*program, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if wait:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-2000:]
    return process


@pytest.fixture
def run_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """`python train.py ...` in this process: exit status, and what it printed."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfd.readouterr()
        return status, out + err

    return run


@pytest.fixture(scope="session")
def checkpoint(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a short training that finds something, one for all test processes."""
    shared_by_processes = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared_by_processes = shared_by_processes.parent
    folder = shared_by_processes / "trained"
    last = folder / "checkpoints" / "last.ckpt"
    with FileLock(f"{folder}.lock"):
        if not last.exists():
            command(
                "experiment=shapes",
                f"data_root={shapes_root}",
                "data.prepare=null",
                f"data.cache_dir={folder}/cache",
                "data.resize.min_size=64",
                "data.resize.max_size=64",
                "backbone.width=16",
                "trainer.max_epochs=18",
                "trainer.check_val_every_n_epoch=18",
                "callbacks.pictures=null",
                f"run_dir={folder}",
                cwd=shared_by_processes,
            )
    return last
