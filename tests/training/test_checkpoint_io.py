import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mrcnn_lightning.training.checkpoint_io import AtomicCheckpointIO

# Writes checkpoints of 20 MB that say which they are, one after the other, for ever.
WRITER = """
import sys, torch
from mrcnn_lightning.training.checkpoint_io import AtomicCheckpointIO
for number in range(1, 10**9):
    AtomicCheckpointIO().save_checkpoint(
        {"number": number, "weights": torch.full((5_000_000,), float(number))}, sys.argv[1]
    )
    print(number, flush=True)
"""


def other_file_system(folder: Path) -> Path | None:
    """A folder on another file system than `folder`, where this machine has one."""
    shm = Path("/dev/shm")
    if shm.is_dir() and os.access(shm, os.W_OK) and shm.stat().st_dev != folder.stat().st_dev:
        return shm
    return None


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.02, 0.04])
def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path: Path, delay: float) -> None:
    target = tmp_path / "last.ckpt"
    temporary = other_file_system(tmp_path)
    if temporary is None:
        pytest.skip("this machine has no second file system to put the temporary folder on")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(3):
        done = int(process.stdout.readline())
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    checkpoint = torch.load(target, weights_only=True)
    assert checkpoint["number"] >= done
    assert (checkpoint["weights"] == checkpoint["number"]).all()
    assert {path.name for path in tmp_path.iterdir()} <= {"last.ckpt", ".last.ckpt.unfinished"}
    # The next one is written over what was left.
    AtomicCheckpointIO().save_checkpoint({"number": 0}, target)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt"}
    assert torch.load(target, weights_only=True) == {"number": 0}


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"number": 1}, target)

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        AtomicCheckpointIO().save_checkpoint({"number": 2}, target)
    assert torch.load(target, weights_only=True) == {"number": 1}
