"""The best checkpoint, also over the folders of a run that was resumed."""

import shutil
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mrcnn_lightning.training.task import DetectionTask


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which would forget the best score in another folder.

    A resumed run writes to a folder of its own, and starts it with a copy of the best checkpoint.
    An evaluation that comes after a fit counts too. Where scores come later, `candidate.ckpt` is
    what may become the best one.

    Args:
        dirpath: folder for `best.ckpt`.
        monitor: the metric.
        mode: `max` or `min`, which is best.
    """

    def __init__(self, *, dirpath: str, monitor: str, mode: str) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._candidate: Path | None = None  # while it is decided on

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Save if this is the best so far."""
        assert isinstance(pl_module, DetectionTask)
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.optimizers:  # after a fit
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        elif not pl_module.awaits_scores:
            super().on_validation_end(trainer, pl_module)
        elif not self._should_skip_saving_checkpoint(trainer):
            assert self.dirpath is not None
            candidate = Path(self.dirpath, "candidate.ckpt")
            trainer.save_checkpoint(candidate, weights_only=False)
            pl_module.when_scored(lambda: self._decide(trainer, candidate))

    def _decide(self, trainer: lightning.Trainer, candidate: Path) -> None:
        self._candidate = candidate
        self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        self._candidate = None
        if trainer.is_global_zero:
            candidate.unlink(missing_ok=True)

    def _save_checkpoint(self, trainer: lightning.Trainer, filepath: str) -> None:
        if self._candidate is None:
            super()._save_checkpoint(trainer, filepath)
        elif trainer.is_global_zero:
            self._candidate.replace(filepath)
            for logger in trainer.loggers:
                logger.after_save_checkpoint(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best checkpoint and its score."""
        old = Path(state_dict["best_model_path"])
        assert self.dirpath is not None
        if state_dict["dirpath"] != self.dirpath and old.is_file():
            new = Path(self.dirpath, old.name)
            _copy(old, new)
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_model_path": str(new),
                "kth_best_model_path": str(new),
                "best_k_models": {str(new): state_dict["best_model_score"]},
                "last_model_path": "",
            }
        super().load_state_dict(state_dict)


@rank_zero_only
def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
