"""Tables of runs: how each ended, what it reached, and in what their configurations differ."""

import csv
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mrcnn_lightning.app.record import FILE, read_record
from mrcnn_lightning.app.sweeps.locks import is_run_alive
from mrcnn_lightning.user_error import UserError

_OWN = ("run", "status", "ap", "steps", "seconds")
# Keys that say where a run is, not what it trains.
_PLACES = ("run_dir", "resume", "ckpt_path", "trial", "launcher")
_MOST_KEYS = 8
_NO_LIMIT = 10_000  # characters of a line
_WIDEST = 40  # characters of a column
_MISSING = ""


class Run(NamedTuple):
    """A run, as its folder says.

    Attributes:
        folder: of the run.
        record: `run.json`, with the status `died` for a process that is not there any more.
        config: full keys of the configuration, references as they are written.
        choices: which file each group took.
        said: keys that its command line set.
    """

    folder: Path
    record: dict[str, Any]
    config: dict[str, Any]
    choices: dict[str, Any]
    said: set[str]


def find_runs(folder: str | Path) -> list[Run]:
    """All runs in a folder and in the folders within.

    Raises:
        UserError: there is none.
    """
    if not Path(folder).is_dir():
        raise UserError(f"no such folder: {folder}")
    found = [read_run(file.parent) for file in sorted(Path(folder).rglob(FILE), key=_in_order)]
    if not found:
        raise UserError(f"there are no runs in {folder} (a run has {FILE} in its folder)")
    return found


def read_run(folder: str | Path) -> Run:
    """A run.

    Raises:
        UserError: the folder has none.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record is None:
        raise UserError(f"{folder} is no run's folder: it has no {FILE}")
    here = record.get("host") in (None, socket.gethostname())
    if record.get("status") == "running" and here and not is_run_alive(folder):
        record["status"] = "died"
    config = _read(folder / ".hydra" / "config.yaml")
    hydras = _read(folder / ".hydra" / "hydra.yaml").get("hydra", {})
    choices = hydras.get("runtime", {}).get("choices", {})
    flat = dict(_flat(config))
    kept = {key: value for key, value in flat.items() if key.partition(".")[0] not in _PLACES}
    return Run(folder, record, kept, choices, _keys_said(folder))


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The keys in which configurations differ, and each run's value.

    A group of which other files were chosen stands for its keys, but for those that a command line
    set. What command lines set comes first.
    """
    said = set().union(*(run.said for run in runs))
    groups = [
        group
        for group in runs[0].choices
        if not group.startswith("hydra/")
        and "@" not in group
        and len({str(run.choices.get(group)) for run in runs if run.choices}) > 1
    ]
    table = {group: [run.choices.get(group, _MISSING) for run in runs] for group in groups}
    covered = tuple(f"{group.replace('/', '.')}." for group in groups)
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [run.config.get(key, _MISSING) for run in runs]
        known = [str(value) for value, run in zip(values, runs, strict=True) if run.config]
        is_covered = f"{key}.".startswith(covered) and key not in said
        if not is_covered and len(set(known)) > 1:
            table[key] = values
    return dict(sorted(table.items(), key=lambda item: item[0] not in {*groups, *said}))


def print_runs(
    folder: str | Path, runs: Sequence[Run], *, sort: str | None = None, file: Path | None = None
) -> None:
    """Print a table.

    Args:
        folder: that the runs are in.
        runs: what to show.
        sort: a column; the best AP comes first.
        file: for all of it as csv, too.

    Raises:
        UserError: there is no such column.
    """
    varied = differing(runs)
    rows = [_row(run, Path(folder)) for run in runs]
    for key, values in varied.items():
        for row, value in zip(rows, values, strict=True):
            row[key] = value
    if sort is not None:
        if sort not in rows[0]:
            raise UserError(f"--sort {sort} is no column: there are {', '.join(rows[0])}")
        rows.sort(key=lambda row: _sortable(row[sort]), reverse=sort == "ap")
    if file is not None:
        errors = {_name(run, Path(folder)): run.record.get("error") or "" for run in runs}
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, [*rows[0], "error"])
            writer.writeheader()
            writer.writerows(row | {"error": errors[row["run"]]} for row in rows)
    shown = [*_OWN, *list(varied)[:_MOST_KEYS]]
    print_table(shown, ([_text(key, row[key]) for key in shown] for row in rows))
    if len(varied) > _MOST_KEYS:
        print(f"{len(varied) - _MOST_KEYS} more keys differ: --csv FILE has all of them")


def print_diff(first: Run, second: Run) -> None:
    """Print in what two runs differ: configuration, environment, results."""
    sections = {"configuration": {key: tuple(v) for key, v in differing([first, second]).items()}}
    environments = [dict(_flat(run.record.get("environment") or {})) for run in (first, second)]
    results = [
        {key: run.record.get(key) for key in ("status", "ap", "best_ap", "steps", "seconds")}
        for run in (first, second)
    ]
    for name, (a, b) in (("environment", environments), ("results", results)):
        sections[name] = {
            key: (a.get(key, _MISSING), b.get(key, _MISSING))
            for key in dict.fromkeys([*a, *b])
            if a.get(key) != b.get(key)
        }
    for name, rows in sections.items():
        print(name if rows else f"{name}: the same")
        if rows:
            columns = ("key", str(first.folder), str(second.folder))
            print_table(columns, ([key, *map(str, values)] for key, values in rows.items()))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as it needs to be: one line a row, which can be cut and searched."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(escape(column), max_width=_WIDEST, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console(highlight=False)
    wanted = console.measure(table, options=console.options.update(max_width=_NO_LIMIT)).maximum
    Console(highlight=False, width=max(console.width, wanted)).print(table)


def _row(run: Run, folder: Path) -> dict[str, Any]:
    record = run.record
    best = record.get("best_ap", record.get("ap"))
    values = (record.get("status"), best, record.get("steps"), record.get("seconds"))
    return dict(zip(_OWN, (_name(run, folder), *values), strict=True))


def _name(run: Run, folder: Path) -> str:
    return str(run.folder.relative_to(folder)) if run.folder.is_relative_to(folder) else str(folder)


def _text(column: str, value: Any) -> str:
    if value is None:
        return _MISSING
    if column == "ap":
        return f"{value:.4f}"
    if column == "seconds":
        return f"{value:.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sortable(value: Any) -> tuple[bool, Any]:
    """Numbers by size, then the rest by name."""
    is_number = isinstance(value, int | float)
    return (is_number, value) if is_number else (False, str(value or ""))


def _in_order(file: Path) -> list[tuple[int, str]]:
    """Folders that are numbers in the order of numbers."""
    return [(int(part) if part.isdigit() else 0, part) for part in file.parts]


def _keys_said(folder: Path) -> set[str]:
    try:
        lines = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text("utf-8")) or []
    except (OSError, ValueError, yaml.YAMLError):
        return set()
    return {str(line).partition("=")[0].lstrip("+~") for line in lines}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _flat(tree: dict[str, Any], parents: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{parents}{key}.")
        else:
            yield f"{parents}{key}", value
