"""What a run says of itself, in its folder: for tables of runs, for sweeps and for going on."""

import json
import logging
from pathlib import Path
from typing import Any

from mrcnn_lightning.app.ranks import own_rank

log = logging.getLogger(__name__)

FILE = "run.json"


class Record:
    """A run's `run.json`; only rank 0 writes it.

    Its keys, each there once it is known: `status` (running, finished, pruned, stopped or failed),
    `error` (one sentence), `command`, `host`, `started` (when it was first started, ISO 8601),
    `seconds` (of all its starts), `steps`, `ap` (of the last evaluation), `best_ap`,
    `best_checkpoint`, `environment` (commit, versions, data) and `trackers` (ids, to go on with).

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        self.file = Path(folder, FILE)
        self.values: dict[str, Any] = read_record(folder) or {}

    def note(self, **values: Any) -> None:
        """Add values; a disk that is full is no reason to end a run."""
        self.values |= values
        if own_rank() > 0:
            return
        part = self.file.with_name(f".{FILE}.part")
        try:
            part.write_text(json.dumps(self.values, indent=1), "utf-8")
            part.replace(self.file)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.file, error)


def read_record(folder: str | Path) -> dict[str, Any] | None:
    """What the run of a folder says of itself; None if it says nothing."""
    try:
        values: dict[str, Any] = json.loads(Path(folder, FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return values
