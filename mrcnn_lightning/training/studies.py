"""Where a study of hyperparameters is kept, as its sweep and its runs say it."""

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage

# A sweep leaves the address to its runs here, not in their configuration: it may have a password.
ADDRESS = "OPTUNA_STORAGE"
JOURNAL = "journal://"
_PATIENCE = 60  # seconds that SQLite waits for other processes


def open_storage(address: str) -> BaseStorage:
    """The storage at an address.

    Args:
        address: of SQLAlchemy's kind, or `journal:///FILE`.
    """
    if address.startswith(JOURNAL):
        return JournalStorage(_WholeLines(address.removeprefix(JOURNAL)))
    options = {"connect_args": {"timeout": _PATIENCE}} if address.startswith("sqlite") else {}
    return RDBStorage(address, engine_kwargs=options)


class _WholeLines(JournalFileBackend):
    """A journal in which a full disk leaves no half a line, which nobody could read past.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self._path, self._own_lock = Path(path), JournalFileSymlinkLock(path)
        super().__init__(path, self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append all of them, or nothing."""
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        self._own_lock.acquire()
        try:
            with self._path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    if file.write(lines.encode()) < len(lines.encode()):
                        raise OSError("the disk has no space left for the journal")
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
        finally:
            self._own_lock.release()
