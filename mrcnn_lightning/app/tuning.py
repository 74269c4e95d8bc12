"""Stages that look for a setting: a learning rate by its range test, or the largest batch."""

import json
import logging
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.tuner import Tuner
from omegaconf import DictConfig

from mrcnn_lightning.data.datamodule import COCODataModule
from mrcnn_lightning.training.task import DetectionTask
from mrcnn_lightning.user_error import UserError

log = logging.getLogger(__name__)

STAGES = ("find_lr", "find_batch_size")
_FEWEST_STEPS = 20  # of which the first ten are not looked at
_NEVER = 1_000_000  # epochs


def prepare_tuning(cfg: DictConfig) -> None:
    """Let a run do nothing but look.

    Args:
        cfg: of the run, which is changed.

    Raises:
        UserError: it cannot be done on these devices.
    """
    settings = cfg.trainer
    # A graph would keep the largest batch, a process beside has nothing to do.
    cfg.task.compiled, cfg.task.background_scoring = False, False
    if cfg.ckpt_path is not None:
        raise UserError(
            f"stage={cfg.stage} goes on with nothing: weights=FILE instead of ckpt_path"
        )
    if cfg.stage == "find_lr" and cfg.task.backbone_lr_factor != 1:
        raise UserError(
            "stage=find_lr gives all layers the same rate: say task.backbone_lr_factor=1"
        )
    if cfg.stage == "find_lr" and not 0 < cfg.find_lr.min_lr < cfg.find_lr.max_lr:
        raise UserError(
            f"find_lr.min_lr={cfg.find_lr.min_lr} is not above 0 and below "
            f"find_lr.max_lr={cfg.find_lr.max_lr}"
        )
    if cfg.stage == "find_lr" and cfg.find_lr.num_training < _FEWEST_STEPS:
        raise UserError(
            f"find_lr.num_training={cfg.find_lr.num_training} steps are too few to suggest a rate: "
            f"give {_FEWEST_STEPS} or more"
        )
    if _num_devices(settings.devices) != 1 or settings.num_nodes != 1:
        raise UserError(
            f"stage={cfg.stage} looks on one device: say trainer.devices=1, for find_lr with "
            "trainer.accumulate_grad_batches=N so that a step has as many images as on N devices"
        )
    cfg.logger = {}
    cfg.data.preview = None
    settings.max_epochs, settings.num_sanity_val_steps = -1, 0
    if settings.check_val_every_n_epoch is not None:
        settings.check_val_every_n_epoch = _NEVER
    if cfg.stage == "find_lr":
        settings.max_steps = cfg.find_lr.num_training
    else:
        settings.max_steps = cfg.find_batch_size.steps_per_trial
        settings.accumulate_grad_batches = 1
        cfg.data.batch_size = cfg.find_batch_size.init_val


def _num_devices(devices: Any) -> int:
    if isinstance(devices, str) and devices.isdigit():
        return int(devices)
    if devices in (None, "auto", -1, "-1"):
        return max(1, torch.cuda.device_count())
    return devices if isinstance(devices, int) else len(devices)


def tune(
    cfg: DictConfig, trainer: lightning.Trainer, task: DetectionTask, data: COCODataModule
) -> None:
    """Look, and say what was found.

    Raises:
        UserError: nothing was.
    """
    task.refuses_divergence = False  # the last rates are meant to be too high
    if cfg.stage == "find_lr":
        _find_lr(cfg, trainer, task, data)
    else:
        _find_batch_size(cfg, trainer, task, data)


def _find_lr(
    cfg: DictConfig, trainer: lightning.Trainer, task: DetectionTask, data: COCODataModule
) -> None:
    """Smith 2017, section 3.3; the suggestion is where the loss falls fastest."""
    finder = Tuner(trainer).lr_find(task, datamodule=data, update_attr=False, **cfg.find_lr)
    suggestion = None if finder is None else finder.suggestion()
    if finder is None or suggestion is None:
        raise UserError(
            "the loss rose too soon to suggest a rate: give a lower find_lr.min_lr, or a larger "
            "find_lr.num_training"
        )
    folder = Path(cfg.run_dir)
    (folder / "find_lr.json").write_text(json.dumps(finder.results))
    figure = finder.plot(suggest=True)
    assert figure is not None
    figure.savefig(folder / "find_lr.png")
    log.info(
        "optimizer.lr=%.2g is where the loss falls fastest: look at %s/find_lr.png, and take a "
        "rate before its lowest point",
        suggestion,
        folder,
    )


def _find_batch_size(
    cfg: DictConfig, trainer: lightning.Trainer, task: DetectionTask, data: COCODataModule
) -> None:
    if is_cpu(trainer):
        raise UserError(
            "stage=find_batch_size tries what is too large for the device's memory, and a CPU's "
            "would take the machine with it: use a GPU"
        )
    found = Tuner(trainer).scale_batch_size(task, datamodule=data, **cfg.find_batch_size)
    log.info(
        "data.batch_size=%s fits on this device: times the number of devices and of "
        "trainer.accumulate_grad_batches; batches of larger images than those tried take more",
        found,
    )


def is_cpu(trainer: lightning.Trainer) -> bool:
    """Whether a model would be in the machine's own memory."""
    return trainer.strategy.root_device.type == "cpu"
