"""Weights & Biases."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from mrcnn_lightning.training.trackers.wandb_files import read_history

_STEP = "trainer/global_step"  # as Lightning calls it
# Seconds. W&B's own are 15, and what it holds back is lost when the process is killed.
_FLUSH_EVERY = 0.1


class Wandb(WandbLogger):
    """Lightning's WandbLogger, whose run has a name that is known before it is made.

    Args:
        project: of W&B.
        name: of the run, as shown.
        save_dir: the run's folder.
        offline: whether nothing is sent; `wandb sync` does it later.
        log_model: whether checkpoints are sent at the end, or `all` of them at once.
        entity: user or team; None is the account's own.
        group: of runs; or None.
        tags: of the run; or None.
        init_timeout: seconds that W&B may take at the start, unless WANDB_INIT_TIMEOUT says.
        finish_timeout: seconds that it may take at the end, unless WANDB_FINISH_TIMEOUT says.
        earlier: the `identity` of a run to go on with; None starts one. Where WANDB_RUN_ID is set,
            as by `wandb agent`, the run is that one.
    """

    def __init__(
        self,
        *,
        project: str,
        name: str,
        save_dir: str,
        offline: bool,
        log_model: bool | str,
        entity: str | None,
        group: str | None,
        tags: list[str] | None,
        init_timeout: float,
        finish_timeout: float,
        earlier: dict[str, str] | None,
    ) -> None:
        run_id = os.environ.get("WANDB_RUN_ID")
        if (
            earlier is not None
            and run_id in (None, earlier["id"])
            and Path(earlier["folder"]).is_dir()
        ):
            run_id, save_dir = earlier["id"], earlier["folder"]
        run_id = run_id or secrets.token_hex(4)
        self.identity = {"id": run_id, "folder": str(Path(save_dir).absolute())}
        self._rows: list[dict[str, Any]] | None = None
        settings = wandb.Settings(
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", init_timeout)),
            finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", finish_timeout)),
            finish_timeout_raises=True,
        )
        if hasattr(settings, "x_transaction_log_flush_interval"):  # since 0.30 or so
            settings.x_transaction_log_flush_interval = _FLUSH_EVERY
        super().__init__(
            project=project,
            name=name,
            save_dir=save_dir,
            offline=offline,
            log_model=log_model,  # type: ignore[arg-type]
            version=run_id,
            entity=entity,
            group=group,
            tags=tags,
            settings=settings,
        )
        del self._wandb_init["anonymous"]  # W&B warns of it
        if offline:  # where W&B cannot look a run up; files of one id become one run when sent
            self._wandb_init["resume"] = None

    def steps_given(self, name: str) -> set[int]:
        """Steps at which W&B has a metric, a picture or a table of this name."""
        if self.experiment.offline or self.experiment.disabled:
            if self._rows is None:
                files = Path(self.identity["folder"], "wandb").glob(
                    f"offline-run-*/run-{self._id}.wandb"
                )
                self._rows = [row for file in files for row in read_history(file)]
            rows = self._rows
        else:
            run = self.experiment
            history = wandb.Api().run(f"{run.entity}/{run.project}/{run.id}")
            rows = list(history.scan_history(keys=[_STEP, name]))
        return {int(row[_STEP]) for row in rows if name in row and _STEP in row}

    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Show a picture."""
        self.log_image(name, [picture], step)

    def log_rows(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
    ) -> None:
        """Show a table."""
        self.log_table(name, list(columns), [list(row) for row in rows], step=step)

    def close(self) -> None:
        """End the run, and wait until W&B has it."""
        self.experiment.finish()
