"""Values that cannot be are refused before anything is built, with the key that the user set."""

import copy
from typing import Any

import hydra
import pytest
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from mrcnn_lightning.app.errors import sentence
from mrcnn_lightning.app.run import run
from mrcnn_lightning.app.stopping import Stop
from mrcnn_lightning.app.values import check_values
from tests.conftest import compose


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose("experiment=shapes", "scheduler=cosine", "logger=[csv,tensorboard,wandb]")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.lr", "fast", "optimizer.lr=fast is no number"),
        ("optimizer.fused", 3, "optimizer.fused=3 is no switch (true or false) or null"),
        ("data.batch_size", "abc", "data.batch_size=abc is no whole number"),
        ("data.batch_size", 2.5, "data.batch_size=2.5 is no whole number"),
        ("data.batch_size", True, "data.batch_size=True is no whole number"),
        ("data.batch_size", [4], "data.batch_size=[4] is no whole number"),
        ("data.train_transforms.1.p", "half", "data.train_transforms.1.p=half is no number"),
        ("data.resize.rule", 3, "data.resize.rule=3 is no"),
        ("trainer.max_epochs", "many", "trainer.max_epochs=many is no whole number or null"),
        ("seed", "abc", "seed=abc is no whole number"),
        ("seed", -1, "seed=-1 is not between 0 and 4294967295"),
        ("seed", 2**70, f"seed={2**70} is no whole number of 64 bits"),
        ("optimizer.lr", float("nan"), "optimizer.lr=nan is no number"),
        ("optimizer.lr", 10**400, f"optimizer.lr={10**400} is no number of 64 bits"),
        ("seed", None, "seed=None is no whole number"),
        ("model.rpn.anchors.aspect_ratios", ["wide"], "model.rpn.anchors.aspect_ratios=['wide']"),
        ("show_score", "high", "show_score=high is no number"),
        ("show_score", 7, "show_score=7 is no number between 0 and 1"),
        ("task.val_losses", "yes", "task.val_losses=yes is no switch (true or false)"),
        ("trainer.log_every_n_steps", 0, "trainer.log_every_n_steps=0 is less than 1"),
        ("trainer.check_val_every_n_epoch", 0, "trainer.check_val_every_n_epoch=0 is less than 1"),
        ("trainer.gradient_clip_val", -1, "trainer.gradient_clip_val=-1 is less than 0"),
        ("trainer.max_steps", 0, "trainer.max_steps=0 trains nothing; -1 is no limit"),
        ("trainer.precision", "bf16-true", "round boxes ... say trainer.precision=bf16-mixed"),
        ("trainer.precision", "16-true", "round boxes ... say trainer.precision=16-mixed"),
        ("trainer.strategy", "fsdp", "trainer.strategy=fsdp ... say trainer.strategy=auto"),
        ("trainer.devices", 0, "trainer.devices=0 is no device"),
        ("ckpt_path", "runs/a.ckpt", "ckpt_path: no such file: runs/a.ckpt ... folder checkpoints"),
        (
            "trainer.max_epoch",
            3,
            "trainer has the option max_epoch ... did you mean trainer.max_epochs?",
        ),
        ("model.num_classes", 3, "model has ... the classes are those of the annotation file"),
    ],
)
def test_what_is_refused(composed: DictConfig, key: str, value: Any, message: str) -> None:
    cfg = copy.deepcopy(composed)
    OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises(ValueError) as error:
        run(cfg, Stop(), in_sweep=False)
    assert all(part in str(error.value) for part in message.split(" ... "))
    assert "\n" not in str(error.value)


def test_right_values_of_every_kind_are_accepted(composed: DictConfig) -> None:
    cfg = copy.deepcopy(composed)
    right = {
        "optimizer.lr": 1,
        "trainer.devices": "auto",
        "trainer.limit_val_batches": 0.5,
        "trainer.deterministic": "warn",
        "trainer.precision": "16-mixed",
        "data.train_transforms.0.min_size": 320,
        "data.max_objects": 7,
        "trainer.max_time": "00:01:00:00",
        "model.mask_head": None,
    }
    for key, value in right.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    check_values(cfg)


def test_torchvisions_numbers_are_numbers() -> None:
    part = {"_target_": "torchvision.transforms.v2.RandomRotation", "expand": True}
    for degrees in (10, 22.5, [-10, 10]):
        check_values(OmegaConf.create({"data": part | {"degrees": degrees}}))
    with pytest.raises(ValueError, match="data.degrees=ten is no number"):
        check_values(OmegaConf.create({"data": part | {"degrees": "ten"}}))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epoch=3", "Could not override ... did you mean trainer.max_epochs?"),
        ("trainer.max_time=3", "can be added: +trainer.max_time=VALUE"),
        ("model.num_classes=3", "the classes are those of the annotation file"),
        ("bakbone.depth=18", "did you mean backbone?"),
        ("model.rpn.anchors.sides=3", "did you mean model.rpn.anchors.sizes?"),
        ("data.canvas.zzz=3", "data.canvas.zzz is no key: there are "),
        ("data.batch_size==4=[", "cannot read the override data.batch_size==4=[: "),
    ],
)
def test_keys_that_are_not_there(override: str, message: str) -> None:
    with pytest.raises(Exception) as error:
        compose(override)
    text = sentence(error.value)
    assert all(part in text for part in message.split(" ... ")) and "\n" not in text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("backbone.width", 0, "backbone.width=0 is less than 1"),
        ("callbacks.progress_bar.refresh_rate", 0, "callbacks.progress_bar.refresh_rate=0 is less"),
        ("trainer.accelerator", "abacus", "trainer: You selected an invalid accelerator name"),
    ],
)
def test_what_a_part_refuses_is_said_with_its_key(
    composed: DictConfig, key: str, value: Any, message: str
) -> None:
    cfg = copy.deepcopy(composed)
    cfg.backbone.weights = None
    OmegaConf.update(cfg, key, value)
    part = OmegaConf.select(cfg, key.rpartition(".")[0])
    with pytest.raises(InstantiationException) as error:
        hydra.utils.instantiate(part, _convert_="all")
    assert sentence(error.value).startswith(message)


def test_a_warm_up_that_leaves_no_cosine(composed: DictConfig) -> None:
    cosine = hydra.utils.instantiate(composed.scheduler, warmup=1.0)
    with pytest.raises(ValueError, match="scheduler.warmup=1.0 .*: say less than 1"):
        cosine(None, total_steps=10)
