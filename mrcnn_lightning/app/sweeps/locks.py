"""Locks of files that say who lives: a process that dies lets go of them."""

from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows: several sweeps must not share a folder there
    fcntl = None  # type: ignore[assignment]


def take_lock(path: Path) -> BinaryIO | None:
    """The file, locked until it is closed here and in processes that it was handed on to.

    Returns:
        None if another has it.
    """
    file = path.open("ab")
    if fcntl is None:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # a file system without locks
        pass
    return file


def is_run_alive(folder: Path) -> bool:
    """Whether a process holds a run's folder, as `RunFolder` does while the run lives."""
    path = folder / ".lock"
    if fcntl is None or not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            return False
    return False
