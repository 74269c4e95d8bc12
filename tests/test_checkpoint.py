import copy
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mrcnn_lightning.app.cli import app
from mrcnn_lightning.app.run import CONF
from mrcnn_lightning.checkpoint import _PART_MODULES, load_checkpoint, require_own_parts
from mrcnn_lightning.data.sizing import PadToMultiple, shorter_side
from mrcnn_lightning.weights.load import load_detector


def test_a_checkpoint_is_all_it_takes(checkpoint: Path) -> None:
    model, description, resize, canvas = load_checkpoint(checkpoint)
    assert not model.training and model.class_names == ["disc", "box", "triangle"]
    assert description.category_ids == [3, 7, 12]
    assert resize.rule.func is shorter_side and resize.max_size == 64
    assert isinstance(canvas, PadToMultiple) and canvas.multiple == 32
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[f"model.{key}"])


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.hub.load",
        "mrcnn_lightning.models.backbones.classifiers.torchvision.models.resnet18",
        "mrcnn_lightning.models.backbones.classifiers.norm_layer",
        "mrcnn_lightning.models.backbones.resnets._stage",
        "mrcnn_lightning.models.backbones.timm_networks.made",
        "mrcnn_lightning.models.backbones.timm_networks.timm_chain",
        "mrcnn_lightning.models.backbones.timm_backbone.timm_chain",
        "mrcnn_lightning.weights.load.read_file",
        "mrcnn_lightning.app.run.main",
        "mrcnn_lightning.data.shapes.generate_shapes",
        "mrcnn_lightning.data.sizing.torch.hub.load",
        "mrcnn_lightning.data.sizing.Any",
        "mrcnn_lightning.data.sizing._resized",
        "mrcnn_lightning.models.detector.nn.Module",
        "mrcnn_lightning.models.detector.",
        "Detector",
        "",
    ],
)
def test_other_targets_are_refused(checkpoint: Path, tmp_path: Path, target: str) -> None:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    content["mrcnn_lightning"]["model"]["rpn"]["anchors"]["_target_"] = target
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="is no part of this project, and is not run"):
        load_checkpoint(tmp_path / "evil.ckpt")


def test_no_function_can_be_named_that_no_configuration_names() -> None:
    """Helpers in a module of parts could do more than make a part: fetch a file, say."""
    conf = "\n".join(file.read_text() for file in CONF.rglob("*.yaml"))
    for module in _PART_MODULES:
        for name, function in inspect.getmembers(import_module(module), inspect.isfunction):
            if function.__module__ == module and not name.startswith("_"):
                assert f"_target_: {module}.{name}\n" in conf, f"{module}.{name}"


def test_weights_that_are_not_finite_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """They would find nothing, and say '0 objects'."""
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    for value in content["state_dict"].values():
        value.fill_(torch.nan if value.is_floating_point() else 0)
    torch.save(content, tmp_path / "diverged.ckpt")
    command = ["predict", str(tmp_path / "diverged.ckpt"), __file__, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert re.match(
        r"error: .*diverged.ckpt has numbers that are not finite in \d+ of its \d+ tensors "
        r"\(.*\): its training had diverged, take an earlier checkpoint",
        result.stderr,
    )
    with pytest.raises(ValueError, match="weights=.*numbers that are not finite"):
        load_detector(load_checkpoint(checkpoint)[0], str(tmp_path / "diverged.ckpt"))


@pytest.mark.parametrize("key", ["resize", "canvas"])
def test_sizing_is_looked_at_like_the_model(checkpoint: Path, tmp_path: Path, key: str) -> None:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    content["mrcnn_lightning"][key] = {"_target_": "os.system", "command": "true"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="names os.system, which is no part of this project"):
        load_checkpoint(tmp_path / "evil.ckpt")


def test_a_checkpoint_without_sizing(checkpoint: Path, tmp_path: Path) -> None:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    del content["mrcnn_lightning"]["resize"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match="old.ckpt is of an earlier version, .* weights=FILE"):
        load_checkpoint(tmp_path / "old.ckpt")


def test_targets_in_lists_are_looked_at() -> None:
    with pytest.raises(ValueError, match="names os.system"):
        require_own_parts({"parts": [{"deep": [{"_target_": "os.system"}]}]})


@pytest.mark.parametrize(
    "part",
    [
        "${oc.create:{_target_:builtins.print}}",
        {"${oc.create:{_target_:builtins.print}}": 1},
        {"_target_": "mrcnn_lightning.models.rpn.rpn.Anchors", "_args_": [1]},
        {"deep": [{"text": "a${oc.env:HOME}"}]},
        {"deep": ({"_target_": "builtins.print"}, 1)},
        {"deep": {1, 2}},
        {"deep": torch.Size([1])},
    ],
)
def test_texts_that_hydra_would_run_are_refused(
    checkpoint: Path, tmp_path: Path, part: object
) -> None:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    content["mrcnn_lightning"]["model"]["neck"] = part
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="the checkpoint has"):
        load_checkpoint(tmp_path / "evil.ckpt")


def test_files_that_are_no_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    spec, key = content["mrcnn_lightning"], "model.rpn.deltas.bias"
    for odd, message in [
        ({"mrcnn_lightning": {}}, "odd.ckpt is no whole checkpoint .* names no classes"),
        ({"mrcnn_lightning": spec}, "odd.ckpt is no whole checkpoint .* has no weights"),
        (content | {"state_dict": {key: "x"}}, "odd.ckpt is no whole .* has no weights"),
        (content | {"state_dict": {key: torch.zeros(3)}}, "odd.ckpt does not fit the model"),
    ]:
        torch.save(odd, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match=message):
            load_checkpoint(tmp_path / "odd.ckpt")
        assert CliRunner().invoke(app, ["info", str(tmp_path / "odd.ckpt")]).exit_code == 1
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt is no checkpoint of this project"):
        load_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="no such file"):
        load_checkpoint(tmp_path / "missing.ckpt")


def _damaged(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a checkpoint whose description has another value, or lacks one, at a dotted key."""
    spec = copy.deepcopy(content["mrcnn_lightning"])
    part, names = spec, key.split(".")
    for name in names[:-1]:
        part = part[name]
    if key == "resize":
        part[key] = part[key] | value
    elif value is MISSING:
        del part[names[-1]]
    else:
        part[names[-1]] = value
    return content | {"mrcnn_lightning": spec}


MISSING = object()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("category_ids", MISSING, "did not write category_ids"),
        ("category_ids", [3, 7], "is damaged: it has 3 classes and 2 category ids"),
        ("category_ids", [3, 3, 7], "is damaged: it has 3 classes and 2 category ids"),
        ("category_ids", ["3", 7, 12], "is damaged: its category ids are no whole numbers"),
        ("category_ids", [3, 7, 2**70], "is damaged: its category ids are no whole numbers"),
        ("class_names", ["disc", "box"], "is damaged: it has 2 classes and 3 category ids"),
        ("show_score", "high", "show_score=high is no number from 0 to 1"),
        ("show_score", float("nan"), "show_score=nan is no number from 0 to 1"),
        ("model.backbone.width", 10**9, "the checkpoint has 1000000000, which no model has"),
        ("model.backbone.width", 10**6, "does not fit the model that it describes: its weights"),
        ("model.backbone.width", "x", "does not fit the model that it describes: "),
        ("model.box_head.trunk.hidden", 10**6, "does not fit .* of another shape"),
        ("model.mask_head.trunk.num_convs", 10**6, "does not fit .*: it has more than 1.* tensors"),
        ("model.rpn", {}, "does not fit the model that it describes: "),
        ("model.neck", None, "does not fit the model that it describes: "),
        (
            "model.rpn.selector.min_side_first",
            MISSING,
            "does not fit the model .*min_side_first",
        ),
        ("resize", {"min_size": 10**5, "max_size": 10**5}, "would become one of 75008 x 100000"),
        ("resize.min_size", "x", "does not fit the model that it describes: "),
        ("canvas.multiple", 10**6, "would become one of 1000000 x 1000000"),
        ("canvas", 3, "does not fit the model that it describes: "),
    ],
)
def test_damaged_descriptions_are_one_sentence(
    checkpoint: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    torch.save(_damaged(content, key, value), tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(tmp_path / "odd.ckpt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hf-hub:evil/net", "local-dir:/etc", "hf_hub:a/b", "../a", ["a"]])
def test_timms_names_in_a_checkpoint_are_plain(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any
) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    asked: list[Any] = []
    monkeypatch.setattr(timm, "create_model", lambda *given, **_: asked.append(given))
    backbone = {
        "_target_": "mrcnn_lightning.models.backbones.timm_backbone.timm",
        "name": name,
        "out_indices": [1, 2, 3, 4],
        "trainable_stages": 3,
        "weights": None,
    }
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    backbone["pixels"] = content["mrcnn_lightning"]["model"]["backbone"]["pixels"]
    torch.save(_damaged(content, "model.backbone", backbone), tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="evil.ckpt .* is no plain name of timm's"):
        load_checkpoint(tmp_path / "evil.ckpt")
    assert not asked
