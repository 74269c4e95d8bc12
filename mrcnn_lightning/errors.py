"""What a user got wrong is answered in one sentence."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import (
    CompactHydraException,
    InstantiationException,
    MissingConfigException,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from mrcnn_lightning.log import log_to_file

USER_ERRORS = (
    ValueError,
    TypeError,  # an option that a part does not have
    OSError,
    InstantiationException,
    MisconfigurationException,
    OmegaConfBaseException,
)


@contextmanager
def in_one_sentence(folder: str | Path, *, in_sweep: bool) -> Iterator[None]:
    """Print a user's error in one line and exit with 1; the traceback goes to a file.

    With HYDRA_FULL_ERROR set, errors are left as they are.

    Args:
        folder: for `error.txt`.
        in_sweep: whether other jobs are to go on; Hydra then exits with 1 after the last.
    """
    try:
        yield
    except USER_ERRORS as error:
        if "HYDRA_FULL_ERROR" in os.environ:
            log_to_file(traceback.format_exc())
            raise
        file = Path(folder, "error.txt")
        file.write_text(traceback.format_exc())
        log_to_file(traceback.format_exc())
        print(f"error: {sentence(error)}\n(details: {file})", file=sys.stderr)
        if in_sweep:
            raise CompactHydraException(f"this job failed, see {file}") from None
        sys.exit(1)
    except Exception:
        log_to_file(traceback.format_exc())
        raise


def sentence(error: BaseException) -> str:
    """What went wrong, and the remedy where the library that raised it has none to offer."""
    option = _unknown_option(error)
    if option is not None:
        return option
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # A data worker's error has its traceback in the message; the last line is the error.
    line = lines[-1] if lines[0].startswith("Caught ") else lines[0]
    if isinstance(error, MissingConfigException) and error.options:
        return f"{line}; there are {', '.join(error.options)}"
    if isinstance(error, InterpolationKeyError):
        return f"{line}: what is chosen there has no such key, set the values that refer to it"
    return line


def _unknown_option(error: BaseException) -> str | None:
    """A part got an option that it does not have, which is often another part's of its group."""
    message = str(error)
    option = re.search(r"unexpected keyword argument '(\w+)'", message)
    place = re.search(r"^full_key: (\S+)", message, re.MULTILINE)
    if option is None or place is None:
        return None
    return (
        f"{place[1]} has the option {option[1]}, which the part chosen there does not know: leave "
        "it out, or choose a part that has it"
    )
