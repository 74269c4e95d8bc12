"""What a command line of this program says, and where the configurations are that it means."""

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent
# A wheel has the configuration inside the package, a checkout beside it.
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())


# What belongs to a sweep, not to its jobs.
_OF_A_SWEEP = re.compile(r"[+~]*(launcher\b|hydra[./](sweep|launcher|mode|run\b))")


def override(key: str, value: str) -> str:
    """`KEY=VALUE` for a text."""
    return f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """A text as Hydra reads it, in quotes where it needs them."""
    if re.fullmatch(r"[\w/.\-]+", value):
        return value
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return f"'{escaped}'"


def of_jobs(overrides: Iterable[str]) -> list[str]:
    """Overrides of a sweep's command line that are its jobs', too."""
    return [each for each in overrides if not _OF_A_SWEEP.match(each)]


def command_with(overrides: Sequence[str]) -> str:
    """A command line of the program that runs, with these overrides."""
    program = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    return shlex.join([*program, *overrides])


def config_options(hydra: Any) -> list[str]:
    """What a command said of where configurations are.

    Args:
        hydra: its configuration of Hydra.
    """
    sources = {each.provider: each.path for each in hydra.runtime.config_sources}
    options = []
    if "command-line" in sources:
        options += ["--config-dir", sources["command-line"]]
    if Path(sources["main"]) != CONF:
        options += ["--config-path", sources["main"]]
    if hydra.job.config_name != "train":
        options += ["--config-name", hydra.job.config_name]
    return options
