"""TensorBoard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger, with pictures, tables and the configuration as text.

    A file beside the events says what is in them, since to read them takes long.

    Args:
        save_dir: the run's folder.
        name: folder within it.
        earlier: the `identity` of a run to go on with; None starts one.
    """

    def __init__(self, *, save_dir: str, name: str, earlier: dict[str, str] | None) -> None:
        folder = Path(save_dir, name)
        if earlier is not None and Path(earlier["folder"]).is_dir():
            folder = Path(earlier["folder"])
        self.identity = {"folder": str(folder.absolute())}
        super().__init__(self.identity["folder"], name="", version="", default_hp_metric=False)
        self._contents = folder / "contents.jsonl"
        self._names: dict[int, set[str]] | None = None  # at each step
        self._goes_on = earlier == self.identity
        if not self._goes_on:  # as csv does with its table
            for file in (self._contents, *folder.glob("events.out.tfevents.*")):
                file.unlink(missing_ok=True)

    def steps_given(self, name: str) -> set[int]:
        """Steps at which there is a metric, a picture or a table of this name."""
        if self._names is None:
            self._names = _read_contents(self._contents)
        return {step for step, names in self._names.items() if name in names}

    def _note(self, step: int, names: list[str] | None) -> None:
        """Write down what there is now at a step, or (None) that there is nothing from it on."""
        self.save()
        with self._contents.open("a", encoding="utf-8") as file:
            # A line of its own, also after one that was cut off.
            file.write("\n" * (file.tell() > 0) + json.dumps([step, names]))

    def purge_from(self, step: int) -> None:
        """Let readers forget what was logged at a step or later."""
        if self._experiment is not None:
            self._experiment.close()
            self._experiment = None
        self._kwargs["purge_step"] = step
        self._names = None
        self._note(step, None)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Show metrics."""
        super().log_metrics(metrics, step)
        self._note(step or 0, list(metrics))

    def log_config(self, params: dict[str, Any]) -> None:
        """Show the configuration as text, once."""
        self.log_hyperparams(params)
        if self._goes_on:
            return
        for name, values in params.items():
            if isinstance(values, dict):
                self.experiment.add_text(f"config/{name}", _as_code(values), 0)
        rest = {name: value for name, value in params.items() if not isinstance(value, dict)}
        self.experiment.add_text("config", _as_code(rest), 0)

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Show a picture."""
        self.experiment.add_image(name, pil_to_tensor(picture), step)
        self._note(step, [name])

    def log_rows(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Show a table as text."""
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
        self.experiment.add_text(name, text, step)
        self._note(step, [name])


def _read_contents(file: Path) -> dict[int, set[str]]:
    """Names of what there is at each step."""
    contents: dict[int, set[str]] = {}
    for line in file.read_text("utf-8").splitlines() if file.is_file() else []:
        try:
            step, names = json.loads(line)
        except ValueError:  # the process was killed while it wrote this
            continue
        if names is None:
            contents = {each: kept for each, kept in contents.items() if each < step}
        else:
            contents.setdefault(step, set()).update(names)
    return contents


def _as_code(values: dict[str, Any]) -> str:
    return "\n".join(f"    {line}" for line in json.dumps(values, indent=1).splitlines())
