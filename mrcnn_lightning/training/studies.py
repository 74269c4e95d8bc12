"""Where a study of hyperparameters is kept, as its sweep and its runs say it."""

from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage

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
        return JournalStorage(JournalFileBackend(address.removeprefix(JOURNAL)))
    options = {"connect_args": {"timeout": _PATIENCE}} if address.startswith("sqlite") else {}
    return RDBStorage(address, engine_kwargs=options)
