"""Stages that look for a learning rate and for a batch size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import lightning
import pytest
import torch

from mrcnn_lightning.app.run import build_parts
from mrcnn_lightning.app.tuning import prepare_tuning, tune
from mrcnn_lightning.models.detector import Detector
from tests.conftest import compose

Run = Callable[..., tuple[int, str]]


def test_the_learning_rates_range_test(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    common = tiny("stage=find_lr", "data.num_workers=0", f"run_dir={run}")
    status, output = run_main(*common, "find_lr.num_training=20", "find_lr.max_lr=100")
    assert status == 0 and "is where the loss falls fastest" in output, output[-2000:]
    found = json.loads((run / "find_lr.json").read_text())
    assert len(found["lr"]) == len(found["loss"]) > 10
    assert found["lr"] == sorted(found["lr"]) and (run / "find_lr.png").stat().st_size > 5000
    assert not (run / "checkpoints").exists() and not (run / "csv").exists()


def test_the_largest_batch(
    tiny: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that runs out of memory with more than 9 images."""
    cfg = compose(*tiny("stage=find_batch_size", "data.num_workers=0", "callbacks=none"))
    cfg.run_dir = cfg.trainer.default_root_dir = str(tmp_path)
    prepare_tuning(cfg)
    data, task = build_parts(cfg, None)
    trainer: lightning.Trainer = hydra.utils.instantiate(cfg.trainer, logger=False)
    loss = Detector.loss

    def limited(self: Any, batch: Any, *more: Any) -> Any:
        if len(batch) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(self, batch, *more)

    monkeypatch.setattr(Detector, "loss", limited)
    with pytest.raises(ValueError, match="would take the machine with it: use a GPU"):
        tune(cfg, trainer, task, data)
    # As on a device that is no CPU, though it computes there.
    monkeypatch.setattr("mrcnn_lightning.app.tuning.is_cpu", lambda trainer: False)
    messages: list[Any] = []
    monkeypatch.setattr(
        "mrcnn_lightning.app.tuning.log.info", lambda *words: messages.append(words)
    )
    tune(cfg, trainer, task, data)
    assert messages[0][1] in (8, 9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.devices=2"], "stage=find_lr looks on one device"),
        (["trainer.devices=[0,1]"], "stage=find_lr looks on one device"),
        (["stage=find_batch_size", "trainer.num_nodes=2"], "find_batch_size looks on one device"),
        (["find_lr.num_training=5"], "find_lr.num_training=5 steps are too few"),
        (["find_lr.min_lr=0"], "find_lr.min_lr=0 is not above 0 and below find_lr.max_lr=1.0"),
        (["ckpt_path=x.ckpt"], "weights=FILE instead of ckpt_path"),
        (["task.backbone_lr_factor=0.1"], "say task.backbone_lr_factor=1"),
    ],
)
def test_what_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_tuning(compose("stage=find_lr", *overrides))
