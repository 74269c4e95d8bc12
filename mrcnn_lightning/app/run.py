"""A run: the configuration's objects are built, and Lightning does the rest."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    LambdaCallback,
    LearningRateMonitor,
    ProgressBar,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from torch import distributed

from mrcnn_lightning.app.command_line import CONF
from mrcnn_lightning.app.devices import check_devices, check_nodes, check_trainer
from mrcnn_lightning.app.environment import describe_environment
from mrcnn_lightning.app.errors import ERROR_FILE, composed, in_one_sentence
from mrcnn_lightning.app.log import kept_in_log
from mrcnn_lightning.app.phases import run_phases, save_last
from mrcnn_lightning.app.ranks import watch
from mrcnn_lightning.app.record import Record, RecordsProgress, recorded, save_config
from mrcnn_lightning.app.replay import kept_for_replay, prepare_replay
from mrcnn_lightning.app.resume import go_on, refuse_used_folder
from mrcnn_lightning.app.run_folder import release
from mrcnn_lightning.app.stopping import SaveAndStop, Stop, stops_when_told
from mrcnn_lightning.app.trackers import make_trackers, overrides
from mrcnn_lightning.app.tuning import STAGES as TUNING
from mrcnn_lightning.app.tuning import prepare_tuning, tune
from mrcnn_lightning.app.values import check_values, unknown_metric
from mrcnn_lightning.checkpoint import Description
from mrcnn_lightning.data.datamodule import SPLITS_OF_STAGE, COCODataModule
from mrcnn_lightning.evaluation.coco import IOU_TYPES
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.training.callbacks.best_checkpoint import BestCheckpoint
from mrcnn_lightning.training.callbacks.pruning import Pruning
from mrcnn_lightning.training.task import DetectionTask
from mrcnn_lightning.training.trackers.guarded import Guarded
from mrcnn_lightning.user_error import UserError
from mrcnn_lightning.weights.load import load_weights

log = logging.getLogger(__name__)

_build = partial(hydra.utils.instantiate, _convert_="all")


def run(cfg: DictConfig, stop: Stop, *, in_sweep: bool) -> float | None:
    """Fit, validate, test or predict, as `cfg.stage` says; returns AP for sweepers."""
    stages = [*SPLITS_OF_STAGE, *TUNING]
    if cfg.stage not in stages:
        raise UserError(f"stage={cfg.stage} is not one of {', '.join(stages)}")
    check_values(cfg)
    check_trainer(cfg.trainer)
    check_devices(cfg.trainer.accelerator, cfg.trainer.devices, in_sweep=in_sweep)
    check_nodes(cfg.trainer.num_nodes)
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed} is not between 0 and {2**32 - 1}")
    if not isinstance(cfg.show_score, int | float) or not 0 <= cfg.show_score <= 1:
        raise UserError(f"show_score={cfg.show_score} is no number between 0 and 1")
    _require_checkpoint(cfg.ckpt_path)
    if cfg.stage not in ("fit", *TUNING) and cfg.ckpt_path is None and cfg.weights is None:
        raise UserError(f"stage={cfg.stage} needs a trained model: give ckpt_path or weights")
    if cfg.trial is not None and cfg.phases and cfg.callbacks.get("pruning"):
        raise UserError(
            "phases and callbacks.pruning do not go together, a phase counts its own steps: say "
            "callbacks.pruning=null"
        )
    if cfg.resume is not None:
        outcome = go_on(cfg)
        if outcome is not None:
            return outcome.ap
        stop.requeues = True
    elif cfg.replay is not None:
        prepare_replay(cfg)
    else:
        refuse_used_folder(cfg)
    if cfg.stage in TUNING:
        prepare_tuning(cfg)
    with recorded(cfg, stop) as record, kept_for_replay(cfg):
        return run_phases(cfg, partial(_run, stop, record))


def _run(
    stop: Stop, record: Record, cfg: DictConfig, phase: int | None
) -> tuple[float | None, str | None]:
    """One fit or evaluation: AP, and the last checkpoint of a phase."""
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    data, task = build_parts(cfg, phase)
    if cfg.ckpt_path is None:
        load_weights(task.model, cfg.weights)
        if cfg.stage == "fit" and cfg.weights is None:
            _warn_of_noise(task.model)
    end = SaveAndStop(stop, run_dir=cfg.run_dir)
    loggers = make_trackers(cfg, record, phase)
    trainer = _trainer(cfg, [end, RecordsProgress(record)], loggers)
    watch(trainer, Path(cfg.run_dir if phase is None else Path(cfg.run_dir).parent, ERROR_FILE))
    _announce_nodes(trainer)
    if trainer.is_global_zero:
        resolved: Any = OmegaConf.to_container(cfg, resolve=True)
        if phase is not None:
            save_config(cfg, cfg.run_dir)
        environment = describe_environment(data)
        record.note(environment=environment)
        for logger in trainer.loggers:
            logger.log_hyperparams(
                resolved | {"environment": environment, "overrides": overrides()}
            )
    options = {"datamodule": data, "ckpt_path": cfg.ckpt_path, "weights_only": True}
    if cfg.stage == "fit":
        trainer.fit(task, **options)
        if task.scored_at != trainer.global_step and trainer.limit_val_batches:
            trainer.validate(task, datamodule=data, verbose=False)
        _say_what_is_best(trainer, record)
        if _was_pruned(trainer):
            record.note(status="pruned")
    elif cfg.stage == "predict":
        trainer.predict(task, return_predictions=False, **options)
    elif cfg.stage in TUNING:
        tune(cfg, trainer, task, data)
    else:
        getattr(trainer, cfg.stage)(task, verbose=False, **options)
    for logger in (each for each in trainer.loggers if isinstance(each, Guarded)):
        logger.close()
    if phase is not None:
        stop.checkpoint = save_last(trainer, cfg.run_dir)
    end.finish(trainer)
    return task.results.get("ap"), stop.checkpoint


def build_parts(cfg: DictConfig, phase: int | None) -> tuple[COCODataModule, DetectionTask]:
    """The data, read for the stage, and the task with a model for its classes.

    Args:
        cfg: the configuration.
        phase: of a staged training, from 1; or None.

    Raises:
        UserError: a value or a file is wrong.
    """
    data = _build(cfg.data, with_masks=cfg.model.mask_head is not None)
    data.setup("fit" if cfg.stage in TUNING else cfg.stage)
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    description = Description(
        model=resolved["model"],
        class_names=data.class_names,
        category_ids=data.category_ids,
        resize=resolved["data"]["resize"],
        canvas=resolved["data"]["canvas"],
        show_score=cfg.show_score,
        dtype=cfg.data.dtype,
        phase=phase,
    )
    return data, _build(cfg.task)(description=description)


@rank_zero_only
def _say_what_is_best(trainer: lightning.Trainer, record: Record) -> None:
    """Where the best checkpoint lies, which is what prediction wants."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BestCheckpoint) and callback.best_model_score is not None:
            score, path = float(callback.best_model_score), callback.best_model_path
            log.info("best %s %.3f: mrcnn predict %s PHOTOS", callback.monitor, score, path)
            record.note(best_checkpoint=path)


def _was_pruned(trainer: lightning.Trainer) -> bool:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(each, Pruning) and each.pruned_at for each in callbacks)


def _warn_of_noise(model: Detector) -> None:
    """Say that random weights are fixed, which no training can change."""
    frozen = [p for p in model.backbone.parameters() if not p.requires_grad]
    if frozen and model.backbone.pretrained is None:
        rank_zero_warn(
            f"backbone.weights=null, but {sum(p.numel() for p in frozen):,} of the backbone's "
            "weights are frozen and will stay random: to train from nothing, set "
            "backbone.trainable_stages=5 backbone.norm=bn"
        )


def _require_checkpoint(path: str | None) -> None:
    """Refuse a file that is not there, before its name is taken for one of torchvision's."""
    if path is None or "://" in path or Path(path).is_file():
        return
    beside = ", ".join(sorted(file.name for file in Path(path).parent.glob("*.ckpt")))
    remedy = f"beside it there are {beside}" if beside else "a run's are in its folder checkpoints"
    raise UserError(f"ckpt_path: no such file: {path} ({remedy})")


def _announce_nodes(trainer: lightning.Trainer) -> None:
    """Say whom a run on several nodes waits for, which may be long."""
    place = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and place is not None and place.local_rank() == 0:
        log.info(
            "node %d of 0 to %d waits until all %d processes have come to %s:%d",
            place.node_rank(),
            trainer.num_nodes - 1,
            trainer.world_size,
            place.main_address,
            place.main_port,
        )


def _check_monitors(cfg: DictConfig, trainer: lightning.Trainer, task: DetectionTask) -> None:
    """Refuse callbacks that watch what the check before training has not logged.

    Raises:
        UserError: there is one.
    """
    of_classes = {f"val/{kind}_ap/{name}" for kind in IOU_TYPES for name in task.model.class_names}
    known = {*trainer.callback_metrics, *of_classes}
    for key, callback in cfg.callbacks.items():
        metric = callback.get("monitor") if callback else None
        if metric and metric not in known and not metric.startswith(("train/", "lr-")):
            raise UserError(unknown_metric(f"callbacks.{key}.monitor", metric, known - of_classes))
        is_late = metric and metric.startswith("val/") and not metric.startswith("val/loss")
        if cfg.task.background_scoring and is_late and callback._target_.startswith("lightning."):
            raise UserError(
                f"callbacks.{key}: {callback._target_} would not wait for {metric}, which with "
                "task.background_scoring=true comes after the evaluation: take this project's "
                "BestCheckpoint or EarlyStopping (conf/callbacks/default.yaml)"
            )


def _trainer(cfg: DictConfig, always: list[Callback], loggers: list[Logger]) -> lightning.Trainer:
    """The trainer, with the callbacks of the configuration and none of Lightning's own."""
    callbacks = [_build(callback) for callback in cfg.callbacks.values() if callback]
    callbacks += always  # after those that change what is saved
    if not loggers:  # it refuses to have nothing to write to
        callbacks = [each for each in callbacks if not isinstance(each, LearningRateMonitor)]
    callbacks.append(
        LambdaCallback(
            on_sanity_check_end=partial(_check_monitors, cfg),
            on_exception=lambda _, task, __: task.end_background(),
        )
    )
    trainer: lightning.Trainer = _build(
        cfg.trainer,
        callbacks=callbacks,
        logger=loggers,
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_model_summary=False,
        enable_progress_bar=any(isinstance(each, ProgressBar) for each in callbacks),
    )
    return trainer


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def _main(cfg: DictConfig) -> float | None:
    cfg.run_dir = HydraConfig.get().runtime.output_dir  # where several processes have agreed on it
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    one_sentence = in_one_sentence(cfg.run_dir, in_sweep=in_sweep)
    with kept_in_log(), one_sentence, stops_when_told(in_sweep=in_sweep) as stop:
        return run(cfg, stop, in_sweep=in_sweep)


def main() -> None:
    """What `python train.py` and `mrcnn train` start."""
    try:
        with composed():
            _main()
        if distributed.is_initialized():  # a process that ends without may be aborted
            distributed.destroy_process_group()
    finally:
        release()


if __name__ == "__main__":
    main()
