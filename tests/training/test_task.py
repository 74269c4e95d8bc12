import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import lightning
import pytest
import torch
from torch.nn import BatchNorm2d

from mrcnn_lightning.app.run import build_parts
from mrcnn_lightning.training.optimizers import let_gradients_be_clipped, parameter_groups
from mrcnn_lightning.training.task import DetectionTask
from mrcnn_lightning.user_error import UserError
from tests.conftest import build_model, compose, make_batch
from tests.training.recorder import Recorder


def build(overrides: list[str]) -> tuple[DetectionTask, Any, lightning.Trainer]:
    """A run's objects, without what it logs and shows."""
    quiet = ["logger=none", "callbacks=none", "+trainer.enable_progress_bar=false"]
    cfg = compose(*overrides, *quiet, "+trainer.enable_model_summary=false")
    cfg.trainer.default_root_dir = cfg.data.cache_dir
    data, task = build_parts(cfg, None)
    trainer = hydra.utils.instantiate(
        cfg.trainer, _convert_="all", logger=False, enable_checkpointing=False
    )
    return task, data, trainer


@pytest.mark.parametrize("decay_biases", [False, True])
def test_parameter_groups_hold_each_trained_parameter_once(decay_biases: bool) -> None:
    model = build_model("backbone=resnet18", "backbone.norm=bn")
    groups = parameter_groups(
        model, lr=0.02, weight_decay=1e-4, decay_biases=decay_biases, backbone_lr_factor=0.1
    )
    names = {group["name"]: group for group in groups}
    expected = {"backbone", "backbone_no_decay", "heads", "heads_no_decay"}
    assert set(names) == (expected - {"heads_no_decay"} if decay_biases else expected)
    assert names["backbone"]["lr"] == pytest.approx(0.002) and names["heads"]["lr"] == 0.02
    for group in groups:
        decays = not group["name"].endswith("no_decay")
        assert group["weight_decay"] == (1e-4 if decays else 0)
        matrices = [parameter.dim() > 1 for parameter in group["params"]]
        assert all(matrices) if decays and not decay_biases else True
        assert decays or not any(matrices)
    norms = [p for m in model.modules() if isinstance(m, BatchNorm2d) for p in m.parameters()]
    free = {id(p) for name in names if name.endswith("no_decay") for p in names[name]["params"]}
    assert {id(p) for p in norms if p.requires_grad} <= free
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(set(ids)) == len(ids) == len(trained) < len(list(model.parameters()))


def test_the_loss_falls_and_everything_is_logged(tiny: Callable[..., list[str]]) -> None:
    torch.manual_seed(0)
    task, data, trainer = build(tiny("trainer.max_epochs=8", "trainer.check_val_every_n_epoch=8"))
    first = task.model.loss(next(iter(data.train_dataloader())))
    trainer.fit(task, datamodule=data)
    metrics = trainer.callback_metrics
    losses = ["objectness", "rpn_box_reg", "classifier", "box_reg", "mask"]
    for split in ("train", "val"):
        assert {f"{split}/loss_{name}" for name in losses} | {f"{split}/loss"} <= set(metrics)
    assert {"val/ap", "val/box_ap", "val/mask_ap50", "val/mask_ar_small"} <= set(metrics)
    assert any(name.startswith("val/mask_ap/") for name in metrics)
    assert metrics["val/loss"] < 0.8 * sum(loss.item() for loss in first.values())
    assert metrics["val/ap"] == metrics["val/mask_ap"]


def test_losses_can_be_monitored_that_are_not_written(tiny: Callable[..., list[str]]) -> None:
    """At an epoch's end and at an evaluation they are those of the last step."""
    epoch = ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1"]
    task, data, trainer = build(tiny(*epoch, "trainer.log_every_n_steps=50"))
    seen = []

    class Watches(lightning.Callback):
        def on_validation_start(self, trainer: lightning.Trainer, task: Any) -> None:
            if not trainer.sanity_checking:
                seen.append(float(trainer.callback_metrics["train/loss"]))
                seen.append(float(task.scalars.on_host()["train/loss"]))

    stopping = lightning.pytorch.callbacks.EarlyStopping(
        "train/loss", check_on_train_epoch_end=True
    )
    trainer.callbacks += [Watches(), stopping]
    trainer.fit(task, datamodule=data)
    assert seen[0] == seen[1] == pytest.approx(float(stopping.best_score))


def test_layers_draw_by_seed_step_batch_and_rank(
    tiny: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = {"global_step": 3, "global_rank": 0}
    for name in place:
        monkeypatch.setattr(DetectionTask, name, property(lambda _, name=name: place[name]))
    drawn = []

    def noted(self: Any, batch: Any) -> dict[str, torch.Tensor]:
        drawn.append(torch.rand(()).item())
        return {"loss": torch.zeros(())}

    def draws(*, batches: int, **where: int) -> list[float]:
        place.update(where)
        drawn.clear()
        for number in range(batches):
            torch.manual_seed(number)  # whatever others have drawn
            task.training_step(make_batch([(32, 32)], [[]], [[]]), number)
        return list(drawn)

    task, _, trainer = build(tiny())
    task.trainer = trainer
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(type(task.model), "loss", noted)
    accumulated = draws(batches=2)
    others = draws(batches=2, global_step=4) + draws(batches=2, global_step=3, global_rank=1)
    assert len({*accumulated, *others}) == 6
    resumed, _, _ = build(tiny())
    for name in ("log", "log_dict", "trainer"):
        setattr(resumed, name, getattr(task, name))
    task = resumed
    assert draws(batches=2, global_step=3, global_rank=0) == accumulated


def test_validation_losses_are_a_switch(tiny: Callable[..., list[str]]) -> None:
    task, data, trainer = build(tiny("trainer.max_steps=1", "task.val_losses=false"))
    trainer.validate(task, datamodule=data, verbose=False)
    assert not any("loss" in name for name in trainer.callback_metrics)
    assert "val/box_ap" in trainer.callback_metrics


def test_a_loss_that_is_not_finite_stops_training(tiny: Callable[..., list[str]]) -> None:
    task, data, trainer = build(tiny("trainer.max_epochs=1"))
    torch.nn.init.constant_(task.model.box_head.branch.trunk.fc1.weight, torch.inf)
    with pytest.raises(ValueError, match="the loss is not finite at step 0: .*lower optimizer.lr"):
        trainer.fit(task, datamodule=data)


def test_a_fused_optimizer_clips_in_mixed_precision(tiny: Callable[..., list[str]]) -> None:
    clipped = ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0"]
    weights = []
    for fused in ("true", "false"):
        torch.manual_seed(0)
        run = tiny("trainer.max_steps=2", f"optimizer.fused={fused}", *clipped)
        task, data, trainer = build(run)
        trainer.fit(task, datamodule=data)
        groups = trainer.optimizers[0].param_groups
        assert all(group["fused"] == (fused == "true") for group in groups)
        weights.append(torch.cat([weight.detach().flatten() for weight in task.parameters()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-5


def test_a_fused_optimizer_clips_gradients_that_are_not_scaled() -> None:
    results = []
    for is_scaled in (False, True):
        weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = torch.optim.SGD([weight], lr=1.0, fused=True)
        scaler = torch.amp.GradScaler("cpu", enabled=is_scaled)
        let_gradients_be_clipped(optimizer)
        scaler.scale(weight.square().sum()).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        scaler.step(optimizer)
        results.append(weight.detach().tolist())
    assert results[0] == results[1] == pytest.approx([2.4, 3.2])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_fused_step_is_the_optimizers_step(optimizer: str) -> None:
    """Weights are channels-last, and fused kernels take gradients to lie as weights do."""
    make = hydra.utils.instantiate(compose(f"optimizer={optimizer}").optimizer, _convert_="all")
    assert make.keywords["fused"]
    fused, plain = (
        build_model("experiment=shapes", "backbone.width=8").requires_grad_() for _ in range(2)
    )
    plain.load_state_dict(fused.state_dict())
    steps = [
        make(model.parameters(), lr=0.01, fused=is_fused)
        for model, is_fused in ((fused, True), (plain, False))
    ]
    boxes = [[[10.0, 12, 60, 70], [50, 30, 120, 90]]]
    for number in range(3):
        batch = make_batch([(96, 128)], boxes, [[1, 3]], seed=number)
        torch.stack(list(fused.loss(batch).values())).sum().backward()
        for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
            theirs.grad = None if ours.grad is None else ours.grad.contiguous()
        for step in steps:
            step.step()
            step.zero_grad()
        for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name


def test_a_run_with_compiled_parts(
    tiny: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda part, **_: compiled.append(type(part).__name__)
    )
    monkeypatch.setattr(shutil, "which", lambda name: name)
    build(tiny())
    assert not compiled
    build(tiny("task.compiled=parts"))
    assert compiled == ["Backbone", "FPN", "RPN", "BoxHead", "MaskHead"]
    with pytest.raises(ValueError, match="task.compiled=True is not one of false, parts and step"):
        build(tiny("task.compiled=true"))


def test_a_run_without_end_is_refused(tiny: Callable[..., list[str]]) -> None:
    task, data, trainer = build(tiny("trainer.max_epochs=-1"))
    with pytest.raises(ValueError, match="the run has no end: set trainer.max_epochs or"):
        trainer.fit(task, datamodule=data)


def test_frozen_weights_that_are_random_are_warned_of(
    tiny: Callable[..., list[str]], run_main: Callable[..., tuple[int, str]]
) -> None:
    _, output = run_main(*tiny("trainer.max_steps=1", "backbone.trainable_stages=3"))
    assert re.search("frozen and will stay random: .*trainable_stages=5", output)


def test_batch_size_that_does_not_divide(tiny: Callable[..., list[str]]) -> None:
    task, data, trainer = build(tiny("data.batch_size=5", "trainer.accumulate_grad_batches=2"))
    with pytest.raises(ValueError, match="data.batch_size=5 .* 1 devices x 2 acc.* multiple of 2"):
        trainer.fit(task, datamodule=data)


def test_a_model_without_masks_gets_none(tiny: Callable[..., list[str]]) -> None:
    task, data, trainer = build(tiny("trainer.max_steps=2", "model=faster_rcnn"))
    assert data.train_dataloader().dataset.mini_mask_size is None
    trainer.fit(task, datamodule=data)
    assert "train/loss_box_reg" in trainer.callback_metrics
    assert "train/loss_mask" not in trainer.callback_metrics


def test_accumulated_batches_make_the_step_of_one_batch(tiny: Callable[..., list[str]]) -> None:
    """The learning rate and the images of a step do not change with accumulation."""
    for parts, steps in ((1, 6), (2, 6), (4, 6)):
        task, data, trainer = build(
            tiny("trainer.max_epochs=1", f"trainer.accumulate_grad_batches={parts}")
        )
        trainer.fit(task, datamodule=data)
        assert trainer.global_step == steps
        assert data.state_dict()["images"] == 24


def test_checkpoint_of_other_classes_is_refused(
    tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    task, data, trainer = build(tiny("trainer.max_steps=1"))
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["mrcnn_lightning"]["class_names"] = ["cat", "dog"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    task, data, trainer = build(tiny("trainer.max_steps=2"))
    with pytest.raises(ValueError, match="trained on the 2 classes cat, dog, the data has the 3"):
        trainer.fit(task, datamodule=data, ckpt_path=tmp_path / "other.ckpt", weights_only=True)


def test_overfitting_repeats_the_same_batches(
    tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    overrides = ["trainer.overfit_batches=4", "trainer.accumulate_grad_batches=2"]
    overrides += ["trainer.max_epochs=3", "data.num_workers=0", "trainer.num_sanity_val_steps=0"]
    task, data, trainer = build(tiny(*overrides, "trainer.check_val_every_n_epoch=4"))
    trainer.callbacks.append(Recorder(file=f"{tmp_path}/batches", kill_after=-1))
    trainer.fit(task, datamodule=data)
    batches = [json.loads(line) for line in (tmp_path / "batches0").read_text().splitlines()]
    assert len(batches) == 12 and len({str(batch) for batch in batches}) == 4
    assert batches == batches[:4] * 3


@pytest.mark.parametrize("other", ["optimizer=sgd", "backbone.trainable_stages=3"])
def test_a_resume_with_another_optimizer_or_other_layers_is_refused(
    tiny: Callable[..., list[str]], other: str
) -> None:
    states = []
    for words in ([], [other]):
        task, _, _ = build(tiny(*words))
        states.append([task.make_optimizer(task._parameter_groups()).state_dict()])
    task._require_same_optimizer(states[1])
    with pytest.raises(UserError, match="another optimizer, or with other layers trained: give"):
        task._require_same_optimizer(states[0])
    with pytest.raises(UserError, match="holds weights alone: .* weights=FILE"):
        task._require_same_optimizer([])


def test_what_torch_refuses_names_the_group(tiny: Callable[..., list[str]]) -> None:
    task, data, trainer = build(tiny("trainer.max_steps=1", "optimizer.betas=[2,2]"))
    with pytest.raises(UserError, match="optimizer: Invalid beta parameter"):
        trainer.fit(task, datamodule=data)
