"""Checkpoint files that are whole or not there."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, and gives the file its name once it is on the disk.

    Lightning's own way writes to the temporary folder, which is atomic on one file system only.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; a process killed at any time leaves the old file or the new one.

        Raises:
            OSError: it cannot be written, in one sentence; what was written of it is gone.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        unfinished = target.with_name(f".{target.name}.unfinished")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise OSError(_reason(target, error)) from error
        if os.name == "nt":  # which cannot open a folder
            return
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _reason(target: Path, error: BaseException) -> str:
    """Why a file was not written: torch's writer hides the system's reason."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    systems = next((each for each in chain if isinstance(each, OSError)), error)
    kept = "; what it held before is kept" if target.exists() else ""
    if getattr(systems, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk for {target}{kept}: free some, and resume"
    return f"{target} cannot be written{kept}: {getattr(systems, 'strerror', None) or systems}"
