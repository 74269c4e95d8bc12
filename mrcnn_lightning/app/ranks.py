"""When one process of a run fails, all end, and what the first one said is the last to be read."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning
import rich
from lightning.pytorch.utilities.rank_zero import rank_zero_only

_LOOK_EVERY = 0.3  # seconds
_GRACE = 4.0  # for rank 0 to say what went wrong, before another rank's end draws attention
_SILENT = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS}
_launchers: list[Any] = []  # Lightning's, which started other processes from this one
_fails = threading.Event()


def own_rank() -> int:
    """The rank of this process, as far as it is known."""
    return getattr(rank_zero_only, "rank", None) or 0


def first_failure(file: Path, text: str) -> str:
    """Note a failure of this process, unless another has failed before, and say what came first.

    Rank 0 ends the processes that it started; another rank waits here for its end.

    Args:
        file: the run's `error.txt`; a first line with `error:` is all that is said of it.
        text: what to note.
    """
    _fails.set()
    _note_silent_ends(file)  # of which this failure may be the consequence
    _note(file, text)
    if own_rank() > 0:
        time.sleep(_GRACE)
    _end_children()
    return _noted(file) or _said(text)


def watch(trainer: lightning.Trainer, file: Path) -> None:
    """End this process when another of the run has failed: it may wait for that one forever.

    Args:
        trainer: of this process.
        file: the run's `error.txt`.
    """
    if trainer.world_size == 1:
        return
    if not _launchers:
        threading.Thread(target=_watch, args=(file,), daemon=True).start()
    _launchers.append(trainer.strategy.launcher)


def _watch(file: Path) -> None:
    while not (_fails.is_set() or file.exists()):
        time.sleep(_LOOK_EVERY)
        _note_silent_ends(file)
    if _fails.is_set():
        return
    _tell_torchrun(_noted(file))
    if own_rank() == 0:
        _end_children()
        rich.get_console().show_cursor()  # a progress bar hides it
        print(f"\n{_noted(file)}\n(details: {file})", file=sys.stderr, flush=True)
    else:
        time.sleep(_GRACE)
    os._exit(1)  # the main thread may be within a collective operation, where nothing reaches it


def _note_silent_ends(file: Path) -> None:
    for child in _children():
        if child.poll() in _SILENT:
            name = signal.Signals(-child.returncode).name
            _note(file, f"error: a process of this run died of {name}, often for lack of memory")


def _note(file: Path, text: str) -> None:
    """Write a failure down, if it is the first one."""
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a full disk is not to hide what went wrong
        part.write_text(text, "utf-8", errors="backslashreplace")
        if not file.exists():
            part.rename(file)
    with contextlib.suppress(OSError):
        part.unlink()
    _tell_torchrun(_noted(file))


def _tell_torchrun(text: str) -> None:
    """Leave what torchrun prints at the end as the cause, which may be this process."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is not None:
        message = {"message": text, "extraInfo": {"timestamp": int(time.time())}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": message}))


def _noted(file: Path) -> str:
    return _said(file.read_text("utf-8")) if file.exists() else ""


def _said(text: str) -> str:
    """A sentence alone, or the whole traceback."""
    return text.partition("\n")[0] if text.startswith("error: ") else text


def _children() -> list[Any]:
    return [child for launcher in _launchers for child in getattr(launcher, "procs", [])]


def _end_children() -> None:
    for child in _children():
        child.kill()
