"""What a run leaves behind, in its folder and in dashboards."""

import csv
import json
import struct
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TextColumn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from mrcnn_lightning.training.callbacks.loss_progress_bar import LossProgressBar

Run = Callable[..., tuple[int, str]]


def wandb_metrics(folder: Path) -> dict[str, str]:
    """All that an offline run of wandb logged, as JSON, by name."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    logged = {}
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            logged[item.key or "/".join(item.nested_key)] = item.value_json
    return logged


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after wandb's own header of 7 bytes."""
    position, record, block, last_kinds = 7, b"", 32768, (1, 4)
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in last_kinds:
            yield record
            record = b""


def test_three_dashboards_hold_the_same_metrics(
    tiny: Callable[..., list[str]], run_main: Run, tmp_path: Path
) -> None:
    status, output = run_main(
        *tiny(
            "logger=[csv,tensorboard,wandb]",
            "logger.wandb.offline=true",
            "trainer.max_epochs=2",
            "trainer.check_val_every_n_epoch=1",
            "trainer.log_every_n_steps=2",
            f"hydra.run.dir={tmp_path}/run",
        )
    )
    assert status == 0, output
    run = tmp_path / "run"
    with (run / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = {key: row[key] for row in rows for key in row if row[key] != ""}
    names = set(last) - {"epoch", "step"}
    assert all(0 <= float(row["train/data_wait"] or 0) < 1 for row in rows)
    assert {
        "train/data_wait",
        "train/loss_mask",
        "val/mask_ap",
        "val/loss",
        "val/mask_ap/disc",
    } <= names
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    board.Reload()
    assert names <= set(board.Tags()["scalars"])
    logged = wandb_metrics(run)
    assert names <= set(logged)
    for name in names:
        scalar = board.Scalars(name)[-1].value
        assert abs(scalar - float(last[name])) < 1e-4 * max(1, abs(scalar)), name
        assert abs(json.loads(logged[name]) - scalar) < 1e-4 * max(1, abs(scalar)), name
    assert "val/picture_00" in board.Tags()["images"]
    pictures = {key for key in logged if key.startswith("val/picture_07")}
    assert pictures, sorted(logged)

    config = OmegaConf.load(run / "config.yaml")
    assert config.model.backbone.width == 8 and not OmegaConf.missing_keys(config)
    assert "ap_medium" in output and "COCO AP after 12 steps" in output
    pictures = sorted((run / "pictures").iterdir())
    assert len(pictures) == 8 and Image.open(pictures[0]).size[0] > 100
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    spec = checkpoint["mrcnn_lightning"]
    assert spec["class_names"] == ["disc", "box", "triangle"] and spec["category_ids"] == [3, 7, 12]
    assert spec["resize"]["min_size"] == 64 and spec["model"]["_target_"].startswith(
        "mrcnn_lightning.models"
    )


def test_the_progress_bar_fits_a_screen_of_80_characters() -> None:
    """As rich draws it, losses of all parts and of a cascade's stages included."""
    bar = LossProgressBar(refresh_rate=1)
    names = ["objectness", "rpn_box_reg", "classifier_stage1", "classifier", "box_reg", "mask"]
    losses = {f"train/loss_{name}": 0.123 for name in names} | {"train/loss": 1.234}
    trainer: Any = SimpleNamespace(progress_bar_metrics=losses, loggers=[], state=None)
    metrics = bar.get_metrics(trainer, SimpleNamespace())  # type: ignore[arg-type]
    assert metrics == {"loss": "1.23 rpn .25 cls .25 box .12 mask .12"}
    columns = [*bar.configure_columns(trainer), TextColumn(f"loss: {metrics['loss']}")]
    console = Console(width=200, record=True, file=StringIO())
    with Progress(*columns, console=console) as progress:
        progress.add_task("Epoch 8/8 ", total=125, completed=60)
    lines = [line.rstrip() for line in console.export_text().splitlines() if line.strip()]
    assert len(lines) == 1 and "mask .12" in lines[0] and len(lines[0]) <= 80
