"""The storage of a study, used patiently: a disk may be full or a server away for a while."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from mrcnn_lightning.app.sweeps.jobs import jobs
from mrcnn_lightning.user_error import UserError

log = logging.getLogger(__name__)

WAITS = [1, 2, 4, 8, 15, 30]  # seconds before each further try
_ERRORS = (StorageInternalError, SQLAlchemyError, OSError)
_T = TypeVar("_T")


def patiently(action: Callable[[], _T], address: str) -> _T:
    """Do something with the storage, several times if it must be.

    Args:
        action: may be done again after it failed.
        address: of the storage.

    Raises:
        UserError: it went wrong each time, or the sweep was told to end meanwhile.
    """
    for wait in [*WAITS, None]:
        try:
            return action()
        except _ERRORS as error:
            reason = _reason(error)
            if wait is None or jobs.signum is not None:
                break
            log.warning("the study's storage: %s; trying again in %d s", reason, wait)
            time.sleep(wait)
    raise UserError(
        f"the study's storage {shown(address)} cannot be used: {reason}; each job's result is in "
        "its folder, and the same command goes on with the study"
    )


def shown(address: str) -> str:
    """An address without its password."""
    if address.startswith("journal://"):
        return address
    return sqlalchemy.make_url(address).render_as_string(hide_password=True)


def _reason(error: BaseException) -> str:
    """What the database or the operating system said first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0] or type(error).__name__
