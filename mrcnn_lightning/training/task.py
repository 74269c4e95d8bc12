"""The LightningModule: what happens in a step of training, validation, test and prediction."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import SyncBatchNorm
from torch.optim import Optimizer

from mrcnn_lightning.checkpoint import Description
from mrcnn_lightning.data.datamodule import SPLITS_OF_STAGE, COCODataModule
from mrcnn_lightning.evaluation.coco import COCOMetric
from mrcnn_lightning.evaluation.scoring import ap_name
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.ops.sampling import step_key
from mrcnn_lightning.results.image_detections import ImageDetections, per_image
from mrcnn_lightning.structures import Batch, Detections
from mrcnn_lightning.training.background_scoring import BackgroundScoring, Pending
from mrcnn_lightning.training.callbacks.show import logged_step
from mrcnn_lightning.training.compiled_step import CompiledStep
from mrcnn_lightning.training.csv_logger import ContinuedCSVLogger
from mrcnn_lightning.training.divergence import Divergence, refuse_diverged
from mrcnn_lightning.training.optimizers import (
    fused_option,
    let_gradients_be_clipped,
    parameter_groups,
)
from mrcnn_lightning.training.step_scalars import StepScalars
from mrcnn_lightning.training.trackers.guarded import Guarded
from mrcnn_lightning.user_error import UserError, built
from mrcnn_lightning.weights.own import DESCRIPTION_KEY
from mrcnn_lightning.weights.report import differences, require_finite

_OWES = "owes_evaluation"  # in a checkpoint
# Options that tell one kind of optimizer from another.
_KINDS_OF_OPTIMIZERS = {"alpha", "betas", "lambd", "momentum", "rho"}


class DetectionTask(lightning.LightningModule):
    """Trains and evaluates a detector.

    Args:
        description: what checkpoints say of the model; it names the classes.
        model: makes the detector from the class names.
        optimizer: makes the optimizer from parameter groups; its `lr` must be bound.
        scheduler: makes the schedule from the optimizer and `total_steps`.
        decay_biases: whether biases decay, as matrices do; norms never do.
        backbone_lr_factor: the backbone's part of the learning rate.
        val_losses: whether losses are computed in validation too.
        background_scoring: whether a fit goes on while a process beside scores its evaluations.
            Scores are taken up, and logged at the step of their evaluation, before the next
            evaluation, before a checkpoint of a later step, and at the end.
        compiled: `parts` have their kernels made by `torch.compile`; with `step`, the losses and
            gradients of a training step are one graph besides (see `CompiledStep`).
        recompute_backbone: whether the backbone's activations are computed again in the backward
            pass, which saves memory and costs time.
        seed: of what layers draw in training, such as stochastic depth.

    Attributes:
        scalars: the losses of the last training step.
        refuses_divergence: whether training ends when losses are not finite.
    """

    def __init__(
        self,
        *,
        description: Description,
        model: Callable[..., Detector],
        optimizer: "partial[Optimizer]",
        scheduler: Callable[..., Any],
        decay_biases: bool,
        backbone_lr_factor: float,
        val_losses: bool,
        background_scoring: bool,
        compiled: Literal[False, "parts", "step"],
        recompute_backbone: bool,
        seed: int,
    ) -> None:
        super().__init__()
        if compiled not in (False, "parts", "step"):
            raise UserError(f"task.compiled={compiled} is not one of false, parts and step")
        if compiled and recompute_backbone:
            raise UserError(
                f"task.compiled={compiled} goes without task.recompute_backbone: the compiler "
                "decides by itself what it computes again"
            )
        self.description = description
        self.model: Detector = built(model, "model", class_names=description.class_names)
        if compiled:
            self.model.compile_parts()
        self._compiled_step = CompiledStep(self.model) if compiled == "step" else None
        self.model.backbone.recomputes = recompute_backbone
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.decay_biases = decay_biases
        self.backbone_lr_factor = backbone_lr_factor
        self.val_losses = val_losses
        self.background_scoring = background_scoring
        self.seed = seed
        self._drawn = (-1, 0)  # the step that layers last drew for, and which of its batches
        self.results: dict[str, float] = {}  # of the last evaluation
        self.scored_at: int | None = None  # after how many steps that was
        self.logged_at = 0  # the step that loggers are given for it
        self.owes_evaluation = False  # the run that this one goes on with ended within one
        self.scalars = StepScalars()
        self.refuses_divergence = True
        self._divergence: Divergence | None = None
        self._background: BackgroundScoring | None = None  # in a fit, if at all
        self._pending: Pending | None = None

    def setup(self, stage: str) -> None:
        """Make the metric of the split that this stage evaluates.

        Raises:
            UserError: statistics are to be those of all processes, which only GPUs can do.
        """
        is_synced = any(isinstance(module, SyncBatchNorm) for module in self.model.modules())
        if is_synced and self.trainer.world_size > 1 and not _is_on_gpu(self.trainer):
            raise UserError("norm=sync_bn on several processes needs GPUs: say norm=bn on a CPU")
        data: COCODataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        split = SPLITS_OF_STAGE[stage][-1]
        self.metric = COCOMetric(
            data.annotations[split].ground_truth if stage != "predict" else None,
            category_ids=self.description.category_ids,
            class_names=self.model.class_names,
            has_masks=self.model.mask_head is not None,
            max_detections=self.model.box_head.selector.num_detections,
        )

    def _parameter_groups(self) -> list[dict[str, Any]]:
        settings = self.make_optimizer.keywords
        return parameter_groups(
            self.model,
            lr=settings["lr"],
            weight_decay=settings.get("weight_decay", 0.0),
            decay_biases=self.decay_biases,
            backbone_lr_factor=self.backbone_lr_factor,
        )

    def _require_same_optimizer(self, states: list[dict[str, Any]]) -> None:
        """Refuse to go on with another optimizer, or with other layers that are trained."""
        own = self._parameter_groups()
        saved = [group for state in states for group in state["param_groups"]]
        if not saved:
            raise UserError("ckpt_path holds weights alone: start a new training with weights=FILE")
        sizes = [[len(group["params"]) for group in groups] for groups in (own, saved)]
        one = built(self.make_optimizer, "optimizer", [torch.zeros(1, requires_grad=True)])
        kinds = [_KINDS_OF_OPTIMIZERS & set(options) for options in (one.defaults, saved[0])]
        if sizes[0] != sizes[1] or kinds[0] != kinds[1]:
            raise UserError(
                "ckpt_path was written by another optimizer, or with other layers trained: give "
                "the same overrides as in its run (config.yaml in its folder), or start a new "
                "training from it with weights=FILE"
            )

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule, stepped at every optimizer step."""
        groups = self._parameter_groups()
        try:
            total_steps = self.trainer.estimated_stepping_batches
        except UserError:
            raise
        except ValueError as error:  # of the trainer's limits, which it compares with the data now
            raise UserError(f"trainer: {error}") from error
        if total_steps == float("inf"):
            raise UserError("the run has no end: set trainer.max_epochs or trainer.max_steps")
        fused = fused_option(self.make_optimizer)
        optimizer = built(self.make_optimizer, "optimizer", groups, **fused)
        if self.trainer.gradient_clip_val:
            let_gradients_be_clipped(optimizer)
        total_steps = int(total_steps)
        scheduler = built(self.make_scheduler, "scheduler", optimizer, total_steps=total_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Put frozen stages in evaluation mode; Lightning leaves modes as it finds them.

        An evaluation that was due when the checkpoint was written comes first: for Lightning it is
        done.
        """
        self.train()
        if self.background_scoring and self.trainer.enable_validation:
            self._background = BackgroundScoring()
        if self.owes_evaluation and self.trainer.enable_validation:
            loop = self.trainer.fit_loop.epoch_loop.val_loop
            self.trainer.validating, loop.restarting = True, False
            loop.run()
            loop._has_run = False  # Lightning would take an epoch that ends here for two
            self.trainer.training = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the losses."""
        self._seed_layers()
        losses = (self._compiled_step or self.model.loss)(batch)
        total = torch.stack(list(losses.values())).sum()
        if self.refuses_divergence:
            images = torch.stack([batch.image_ids, batch.seeds])  # (2, B)
            self._divergence = self._divergence or Divergence(losses, images)
            self._divergence.note(losses, images, self.global_step)
        self.scalars.keep({"loss": total, **losses})
        return total

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Forget the gradients, as what computes them wants it."""
        if self._compiled_step is None:
            optimizer.zero_grad()
        else:
            self._compiled_step.zero_grad(optimizer)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log where it is written or monitored; only then the host waits for the device.

        Raises:
            UserError: the losses of this step or of an earlier one were not finite.
        """
        trainer = self.trainer
        is_step = not trainer.fit_loop._should_accumulate()
        is_written = is_step and trainer._logger_connector.should_update_logs
        is_last = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        if is_written or is_last or _evaluation_follows(trainer):
            self._refuse_diverged_losses()
            self.log_dict(self.scalars.on_host(), batch_size=len(batch))

    def on_train_epoch_end(self) -> None:
        """Look at the losses of the last steps."""
        self._refuse_diverged_losses()

    def on_train_end(self) -> None:
        """Wait for the scores of the last evaluation."""
        self._take_up_scores()
        self.end_background()

    def end_background(self) -> None:
        """End the process beside, if there is one."""
        if self._background is not None:
            self._background.close()
            self._background = None

    def _refuse_diverged_losses(self) -> None:
        if self._divergence is not None:
            self._divergence.check(self.all_gather)

    def _seed_layers(self) -> None:
        """Let layers draw the same after a resume, and other numbers on each rank."""
        step, part = self._drawn
        self._drawn = (step, part + 1) if step == self.global_step else (self.global_step, 0)
        torch.manual_seed(step_key(self.seed, *self._drawn, self.global_rank))

    def _evaluate(self, batch: Batch, split: str) -> Detections:
        features = self.model.features(batch)
        if self.val_losses:
            losses = self.model.loss(batch, features)
            losses["loss"] = torch.stack(list(losses.values())).sum()
            self.log_dict(
                {f"{split}/{name}": value for name, value in losses.items()},
                on_step=False,
                on_epoch=True,
                batch_size=len(batch),
                sync_dist=True,
            )
        detections = self.model.predict(batch, features)
        if self._background is None:
            self.metric.update(per_image(detections, batch, self.model.paste))
        else:
            self._background.update(self.metric, detections, batch, self.model.paste)
        return detections

    def _score(self, split: str) -> None:
        results = self._with_ap(self.metric.compute())
        self.metric.reset()
        # All ranks have the same numbers; sync_dist only tells Lightning that this is so.
        self.log_dict({f"{split}/{name}": value for name, value in results.items()}, sync_dist=True)
        if not self.trainer.sanity_checking:  # which sees a part of the images, also after a resume
            self._keep(results, self.global_step, logged_step(self.trainer))

    def _with_ap(self, results: dict[str, float]) -> dict[str, float]:
        """Results, with `ap`."""
        kind = "mask" if self.model.mask_head is not None else "box"
        ap = f"{kind}_{ap_name(self.metric.max_detections)}"
        return results | {"ap": results.get(ap, results[f"{kind}_ap"])}  # LVIS has one AP, of 300

    def _keep(self, results: dict[str, float], scored_at: int, logged_at: int) -> None:
        self.results, self.scored_at, self.logged_at = results, scored_at, logged_at
        self.owes_evaluation = False

    def _score_later(self, background: BackgroundScoring) -> None:
        loops = self.trainer._checkpoint_connector._get_loops_state_dict()
        self._pending = Pending(
            background.score(self.metric, is_first=self.trainer.is_global_zero),
            steps=self.global_step,
            logged_at=logged_step(self.trainer),
            place={"epoch": self.trainer.current_epoch, "loops": loops},
        )

    def when_scored(self, act: Callable[[], None]) -> None:
        """Do something once the scores of the evaluation that ends are there, now or later."""
        if self._pending is None:
            act()
        else:
            self._pending.acts.append(act)

    @property
    def awaits_scores(self) -> bool:
        """Whether the scores of the last evaluation are not there yet."""
        return self._pending is not None

    def _take_up_scores(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        scores, self.metric.evaluated = pending.scores()
        results = self._with_ap(self.trainer.strategy.broadcast(scores))
        self._keep(results, pending.steps, pending.logged_at)
        metrics = {
            f"val/{name}": torch.tensor(value, device=self.device)
            for name, value in results.items()
        }
        self.trainer.callback_metrics.update(metrics)
        epoch = {"epoch": pending.place["epoch"]}
        self.trainer._logger_connector.log_metrics(metrics | epoch, step=pending.logged_at)
        for act in pending.acts:
            act()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Detections]:
        """`detections` of a batch, for callbacks."""
        return {"detections": self._evaluate(batch, "val")}

    def on_validation_start(self) -> None:
        """Take up the scores of the evaluation before."""
        self._take_up_scores()

    def on_validation_epoch_end(self) -> None:
        """Log box and mask AP, and as `ap` the one that best counts what the model gives."""
        if self._background is None:
            self._score("val")
        else:
            self._score_later(self._background)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Detections]:
        """`detections` of a batch, for callbacks."""
        return {"detections": self._evaluate(batch, "test")}

    def on_test_epoch_end(self) -> None:
        """Log box and mask AP, and keep the detections."""
        self._write_results()
        self._score("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[ImageDetections]:
        """What is in the images of a batch."""
        found = per_image(self.model.predict(batch), batch, self.model.paste)
        self.metric.update(found)
        return found

    def on_predict_epoch_end(self) -> None:
        """Keep the detections of all ranks."""
        self._write_results()
        self.metric.reset()

    def _write_results(self) -> None:
        results = self.metric.results()
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir, "predictions.json")
            path.write_text(json.dumps(results))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put in what it takes to rebuild the model, and whether an evaluation is due.

        Raises:
            UserError: a loss, a weight or what the optimizer keeps is not finite.
        """
        self._refuse_diverged_losses()
        refuse_diverged(checkpoint, self.global_step)
        if self._pending is not None and self._pending.steps < self.global_step:
            self._take_up_scores()
            if "callbacks" in checkpoint:  # some of which have acted on them
                checkpoint["callbacks"] = call._call_callbacks_state_dict(self.trainer)
        checkpoint[DESCRIPTION_KEY] = self.description.write()
        is_due = self.owes_evaluation or _evaluation_follows(self.trainer)
        checkpoint[_OWES] = is_due and self.scored_at != self.global_step
        if self._pending is not None:  # a run that goes on from here does the evaluation again
            checkpoint |= self._pending.place | {_OWES: True}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare classes and weights before anything is loaded.

        Raises:
            UserError: it was trained on other classes, or is of another architecture.
        """
        names = checkpoint[DESCRIPTION_KEY]["class_names"]
        if names != self.model.class_names:
            raise UserError(
                f"ckpt_path was trained on the {len(names)} classes {_some(names)}, the data has "
                f"the {len(self.model.class_names)} classes {_some(self.model.class_names)}: give "
                "its own data, or start a new training from it with weights=FILE"
            )
        problems = differences(self.state_dict(), checkpoint["state_dict"])
        if problems:
            raise UserError(
                f"ckpt_path is of another architecture: {problems}; give the same overrides as in "
                "its run (config.yaml in its folder)"
            )
        require_finite(checkpoint["state_dict"], "ckpt_path")
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._require_same_optimizer(checkpoint.get("optimizer_states", []))
        self.owes_evaluation = checkpoint.get(_OWES, False)
        if self.trainer.state.fn == TrainerFn.FITTING:
            for logger in self.trainer.loggers:
                if isinstance(logger, ContinuedCSVLogger):
                    logger.go_on_after(
                        checkpoint["global_step"], evaluates_again=self.owes_evaluation
                    )
                elif isinstance(logger, Guarded):
                    logger.go_on_after(checkpoint["global_step"])
        for state in checkpoint.get("optimizer_states", []):
            for group in state["param_groups"]:  # would undo what this run's optimizer is
                group |= fused_option(self.make_optimizer)


def _is_on_gpu(trainer: lightning.Trainer) -> bool:
    return trainer.strategy.root_device.type == "cuda"


def _evaluation_follows(trainer: lightning.Trainer) -> bool:
    """Whether Lightning evaluates after the batch that was trained on last."""
    every_epochs, every_batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    loop = trainer.fit_loop
    if not trainer.enable_validation or every_batches in (None, float("inf")):
        return False
    if every_epochs is None:
        return (loop.total_batch_idx + 1) % every_batches == 0
    is_epochs_turn = (trainer.current_epoch + 1) % every_epochs == 0
    return is_epochs_turn and (loop.batch_idx + 1) % every_batches == 0


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
