from typing import Any

import pytest
import torch

from mrcnn_lightning.app.devices import check_devices, check_nodes


@pytest.mark.parametrize(
    ("gpus", "accelerator", "devices", "in_sweep", "message"),
    [
        (0, "auto", 4, False, "devices=4, but this machine has no GPU.*trainer.accelerator=cpu"),
        (0, "auto", "2", False, "devices=2, but this machine has no GPU"),
        (0, "gpu", 1, False, "accelerator=gpu, but this machine has no GPU"),
        (2, "auto", 4, False, "devices=4, but this machine has 2 GPUs"),
        (2, "gpu", [0, 1, 2], False, "devices=3, but this machine has 2 GPUs"),
        (0, "cpu", 2, True, "devices=2, but this sweep's launcher"),
        (0, "auto", 1, True, None),
        (0, "cpu", 2, False, None),
        (2, "auto", 2, False, None),
        (2, "cpu", 4, False, None),
        (8, "auto", "auto", False, None),
        (8, "auto", -1, False, None),
    ],
)
def test_devices_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    accelerator: str,
    devices: Any,
    in_sweep: bool,
    message: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    if message is None:
        check_devices(accelerator, devices, in_sweep=in_sweep)
        return
    with pytest.raises(ValueError, match=message) as error:
        check_devices(accelerator, devices, in_sweep=in_sweep)
    assert "\n" not in str(error.value)


def test_nodes_that_cannot_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    check_nodes(1)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    with pytest.raises(ValueError, match="num_nodes=2, but MASTER_PORT, NODE_RANK are not set"):
        check_nodes(2)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("NODE_RANK", "1")
    check_nodes(2)
