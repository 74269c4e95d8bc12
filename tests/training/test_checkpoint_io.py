import errno
import itertools
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mrcnn_lightning.training.checkpoint_io import AtomicCheckpointIO


def write_for_ever(target: Path, progress: Any) -> None:
    """Write checkpoints of 20 MB that say which they are, one after the other."""
    for number in itertools.count(1):
        content = {"number": number, "weights": torch.full((5_000_000,), float(number))}
        AtomicCheckpointIO().save_checkpoint(content, target)
        progress.send(number)


def other_file_system(folder: Path) -> Path | None:
    """A folder on another file system than `folder`, where this machine has one."""
    shm = Path("/dev/shm")
    if shm.is_dir() and os.access(shm, os.W_OK) and shm.stat().st_dev != folder.stat().st_dev:
        return shm
    return None


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.02, 0.04])
def test_a_process_killed_while_writing_leaves_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    target = tmp_path / "last.ckpt"
    temporary = other_file_system(tmp_path)
    if temporary is None:
        pytest.skip("this machine has no second file system to put the temporary folder on")
    monkeypatch.setenv("TMPDIR", str(temporary))
    forking = multiprocessing.get_context("fork")  # torch takes seconds to import
    progress, writer_end = forking.Pipe(duplex=False)
    process = forking.Process(target=write_for_ever, args=(target, writer_end))
    process.start()
    for _ in range(3):
        done = progress.recv()
    time.sleep(delay)
    process.kill()
    process.join()
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no full device")
def test_a_full_disk_is_named_and_not_kept_full(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"number": 1}, target)
    (tmp_path / ".last.ckpt.unfinished").symlink_to("/dev/full")
    message = f"no space left on the disk for {target}; what it held before is kept: free some"
    with pytest.raises(OSError, match=message):
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, target)
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(OSError, match=r"last.ckpt cannot be written: Read-only file system$"):
        AtomicCheckpointIO().save_checkpoint({"number": 1}, tmp_path / "last.ckpt")
