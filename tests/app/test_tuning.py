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
    status, output = run_main(*common, "find_lr.num_training=5")
    assert status == 1 and "find_lr.num_training=5 steps are too few" in output, output[-2000:]


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


@pytest.mark.parametrize("stage", ["find_lr", "find_batch_size"])
def test_several_devices_are_refused(stage: str) -> None:
    cfg = compose(f"stage={stage}", "trainer.devices=2")
    with pytest.raises(ValueError, match=f"stage={stage} looks on one device"):
        prepare_tuning(cfg)
