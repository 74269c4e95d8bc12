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
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    OmegaConfBaseException,
)

from mrcnn_lightning.app.log import log_to_file
from mrcnn_lightning.app.ranks import first_failure, own_rank
from mrcnn_lightning.app.values import unknown_key, unknown_option
from mrcnn_lightning.user_error import UserError

USER_ERRORS = (
    UserError,
    OSError,  # a disk that is full, a file that may not be read
    InstantiationException,
    MisconfigurationException,
    OmegaConfBaseException,
)


ERROR_FILE = "error.txt"
_HYDRAS = "HYDRA_FULL_ERROR"
_asked_hydra = False


@contextmanager
def composed() -> Iterator[None]:
    """Print why a configuration does not compose in one line, instead of Hydra's advice."""
    global _asked_hydra
    if _HYDRAS in os.environ:  # the user wants all of it
        yield
        return
    os.environ[_HYDRAS], _asked_hydra = "1", True
    try:
        yield
    except (CompactHydraException, OmegaConfBaseException) as error:
        say(f"error: {sentence(error)}")
        sys.exit(1)
    finally:
        stop_asking_hydra()


def stop_asking_hydra() -> None:
    """From here on Hydra treats errors as it does: those of a run, and of other processes."""
    global _asked_hydra
    if _asked_hydra:
        del os.environ[_HYDRAS]
        _asked_hydra = False


def ask_hydra() -> None:
    """Let the error that follows come through Hydra to `composed`, which prints it in one line."""
    global _asked_hydra
    if _HYDRAS not in os.environ:
        os.environ[_HYDRAS], _asked_hydra = "1", True


def say(text: str) -> None:
    """Print to the error stream."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def or_exit() -> Iterator[None]:
    """Print a user's error in one line and exit with 1, where no run has a folder for details."""
    try:
        yield
    except (*USER_ERRORS, HydraException) as error:
        if _HYDRAS in os.environ:
            raise
        say(f"error: {sentence(error)}")
        sys.exit(1)


@contextmanager
def in_one_sentence(folder: str | Path, *, in_sweep: bool) -> Iterator[None]:
    """Print a user's error in one line and exit with 1; the traceback goes to files.

    Of several processes only rank 0 prints, and what it prints is the first error of any of them.
    With HYDRA_FULL_ERROR set, errors are left as they are.

    Args:
        folder: for `error.txt`.
        in_sweep: whether other jobs are to go on; Hydra then exits with 1 after the last.
    """
    file = Path(folder, ERROR_FILE)
    if in_sweep:
        file.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        details = traceback.format_exc()
        log_to_file(details)
        is_users = isinstance(error, USER_ERRORS) or _lost_worker(error) is not None
        is_users = is_users and _HYDRAS not in os.environ
        line = f"error: {sentence(error)}"
        line += f" (rank {own_rank()})" if own_rank() else ""
        first = first_failure(file, f"{line}\n\n{details}" if is_users else details)
        if first == details:
            raise
        say(f"{first}\n(details: {file})")
        if in_sweep:
            raise CompactHydraException(f"this job failed, see {file}") from None
        sys.exit(1)


def sentence(error: BaseException) -> str:
    """What went wrong, and the remedy where the library that raised it has none to offer."""
    known = _unknown_option(error) or _lost_worker(error)
    if known is not None:
        return known
    place = ""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        place, error = _full_key(error), error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # A data worker's error has its traceback in the message; the last line is the error.
    line = lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else lines[0]
    if line.endswith(":") and len(lines) > 1:  # Hydra's, of a module that cannot be imported
        line = f"{line} {lines[1]}; Python looks for modules in the folders of PYTHONPATH"
    if isinstance(error, MissingConfigException) and error.options:
        return f"{line}; there are {', '.join(error.options)}"
    if isinstance(error, InterpolationKeyError):
        return f"{line}: what is chosen there has no such key, set the values that refer to it"
    if line.startswith("Ambiguous value for argument"):
        return f"{line}; a sweep over several values is `-m ...`"
    if isinstance(error, OverrideParseException):
        return f"cannot read the override {error.override}: {line}"
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        return f"{line}: {str(error.__cause__).partition(chr(10))[0]}"
    # A part does not know where it is in the configuration; ours often say it all the same.
    if not place or place.rpartition(".")[2] in line.partition("=")[0]:
        return line
    return f"{place}.{line}" if re.match(r"\w+=", line) else f"{place}: {line}"


def _lost_worker(error: BaseException) -> str | None:
    """A process that loads images has died; torch says so wherever the run happens to be."""
    message = str(error)
    died = re.match(
        r"DataLoader worker \(pid.*\) (is killed by signal: [^.]+|exited [^.]*)", message
    )
    if not isinstance(error, RuntimeError) or died is None:
        return None
    if "shared memory" in message:
        return (
            "a data worker died for lack of shared memory: give the machine or container more "
            "(docker run --shm-size=8g), or set data.num_workers lower"
        )
    return (
        f"a data worker {died[1].replace('is', 'was', 1)}, mostly for lack of memory: set "
        "data.num_workers lower, or ask for more memory"
    )


def _full_key(error: BaseException) -> str:
    """Where Hydra was in the configuration; what the task and the model refer to is elsewhere."""
    place = re.search(r"^full_key: (\S+)", str(error), re.MULTILINE)
    if place is None:
        return ""
    key = re.sub(r"^(task\.)?(model\.(?=backbone))?", "", place[1])
    return re.sub(r"(transforms)(\d+)", r"\1.\2", key)  # Hydra forgets the dot before a number


def _unknown_option(error: BaseException) -> str | None:
    """A key that is not there, or an option of another part's of its group."""
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(
        cause, ConfigKeyError | ConfigAttributeError
    ):
        start = str(error).splitlines()[0].rstrip(".")
        return f"{start}: {unknown_key(cause.parent_node, str(cause.full_key))}"
    option = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if option is None or not _full_key(error):
        return None
    return unknown_option(_full_key(error), option[1], [])
