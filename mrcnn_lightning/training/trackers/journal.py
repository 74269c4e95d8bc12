"""What a tracker was already given, so that a resumed run gives it no step twice."""

import json
from collections.abc import Iterable
from pathlib import Path


class Journal:
    """Names of what was given at each step, kept in a file that only grows.

    Args:
        file: where; None keeps nothing for later.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._given: dict[int, set[str]] = {}
        if file is not None and file.is_file():
            for line in file.read_text("utf-8").splitlines():
                self._read(line)

    def _read(self, line: str) -> None:
        try:
            step, names = json.loads(line)
        except ValueError:  # the process was killed while it wrote this
            return
        if names is None:
            self._forget(step)
        else:
            self._given.setdefault(step, set()).update(names)

    def has(self, name: str, step: int) -> bool:
        """Whether the tracker has a value of this name at this step."""
        return name in self._given.get(step, ())

    def add(self, names: Iterable[str], step: int) -> None:
        """Note what the tracker was given.

        Raises:
            OSError: it cannot be written.
        """
        new = set(names)
        self._given.setdefault(step, set()).update(new)
        self._write(step, sorted(new))

    def forget_from(self, step: int) -> None:
        """Take note that the tracker has dropped what it had from a step on.

        Raises:
            OSError: it cannot be written.
        """
        self._forget(step)
        self._write(step, None)

    def _forget(self, step: int) -> None:
        self._given = {each: names for each, names in self._given.items() if each < step}

    def _write(self, step: int, names: list[str] | None) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            # A line of its own, also after one that was cut off.
            file.write(
                f"\n{json.dumps([step, names])}" if file.tell() else json.dumps([step, names])
            )
