"""TensorBoard."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor


class TensorBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger, with pictures, tables and the configuration as text.

    Args:
        save_dir: the run's folder.
        name: folder within it.
        run_id: the folder of an earlier process's files, to go on there; None starts anew.
    """

    def __init__(self, *, save_dir: str, name: str, run_id: str | None) -> None:
        folder = Path(save_dir, name)
        if run_id is not None and Path(run_id).is_dir():
            folder = Path(run_id)
        self.run_id = str(folder.absolute())
        self._goes_on = any(folder.glob("events.*"))
        super().__init__(self.run_id, name="", version="", default_hp_metric=False)

    def purge_from(self, step: int) -> None:
        """Let readers forget what was logged at a step or later."""
        if self._experiment is not None:
            self._experiment.close()
            self._experiment = None
        self._kwargs["purge_step"] = step

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
        self.save()

    def log_rows(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Show a table as text."""
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
        self.experiment.add_text(name, text, step)
        self.save()


def _as_code(values: dict[str, Any]) -> str:
    return "\n".join(f"    {line}" for line in json.dumps(values, indent=1).splitlines())
