import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from mrcnn_lightning.models.weight_files import read_file
from mrcnn_lightning.models.weights import load_backbone, load_detector
from tests.conftest import build_model
from tests.models.test_backbones import build

COCO_91 = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_80 = [name for name in COCO_91[1:] if name != "N/A"]


def torchvision_state(num_classes: int) -> dict[str, Any]:
    torch.manual_seed(num_classes)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
    return torchvision.models.detection.MaskRCNN(backbone, num_classes).state_dict()


def old_names(state: dict[str, Any]) -> dict[str, Any]:
    """The names in torchvision's published file, which is older than its code."""
    renamed = {}
    for key, value in state.items():
        for new, old in [
            ("rpn.head.conv.0.0.", "rpn.head.conv."),
            *((f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.") for i in range(4)),
            *((f"inner_blocks.{i}.0.", f"inner_blocks.{i}.") for i in range(4)),
            *((f"layer_blocks.{i}.0.", f"layer_blocks.{i}.") for i in range(4)),
        ]:
            key = key.replace(new, old)
        renamed[key] = value
    return renamed


@pytest.fixture(scope="module")
def coco_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "coco.pth"
    torch.save(old_names(torchvision_state(91)), path)
    return path


def test_rows_of_91_classes_become_cocos_80(coco_file: Path) -> None:
    model = build_model(class_names=COCO_80)
    load_detector(model, str(coco_file))
    state, ours = torchvision_state(91), model.state_dict()
    zebra = COCO_91.index("zebra")
    row = COCO_80.index("zebra")
    expected = state["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(ours["box_head.branch.classifier.weight"][row + 1], expected[zebra])
    assert torch.equal(ours["box_head.branch.classifier.weight"][0], expected[0])
    expected = state["roi_heads.box_predictor.bbox_pred.bias"].view(91, 4)
    assert torch.equal(ours["box_head.branch.deltas.bias"].view(80, 4)[row], expected[zebra])
    expected = state["roi_heads.mask_predictor.mask_fcn_logits.weight"]
    assert torch.equal(ours["mask_head.classifier.weight"][row], expected[zebra])
    expected = state["roi_heads.mask_head.2.0.weight"]
    assert torch.equal(ours["mask_head.trunk.convs.2.0.weight"], expected)


def test_other_classes_start_afresh_and_all_else_is_loaded(
    coco_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(class_names=["balloon"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with caplog.at_level("INFO"):
        load_detector(model, str(coco_file))
    kept = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    kept -= {key for key in kept if "running" in key or "bn" in key or "downsample.1" in key}
    per_class = {"box_head.branch.classifier", "box_head.branch.deltas", "mask_head.classifier"}
    assert {f"{layer}.weight" for layer in per_class} <= kept
    assert {key.rpartition(".")[0] for key in kept} - per_class <= {
        key.rpartition(".")[0] for key in before if key.endswith("bias")
    }
    assert "start afresh" in caplog.text and "mask_head.classifier.weight" in caplog.text


def test_another_architecture_is_one_clear_error(coco_file: Path) -> None:
    model = build_model("backbone=resnet18")
    with pytest.raises(
        ValueError, match="is not of this architecture: .* left over .* of another shape"
    ):
        load_detector(model, str(coco_file))


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    state = torchvision_state(4)
    del state["rpn.head.cls_logits.bias"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"1 missing \(rpn.objectness.bias\)"):
        load_detector(build_model(), str(tmp_path / "partial.pth"))


def test_backbone_file_of_another_depth(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(ValueError, match="backbone.weights=.*resnet34.pth is not of this arch"):
        build(18, weights=str(tmp_path / "resnet34.pth"))


def test_unknown_weights_are_answered_with_the_known() -> None:
    with pytest.raises(ValueError, match="backbone.weights=IMAGENET is no weights .*IMAGENET1K_V1"):
        build(18, weights="IMAGENET")
    with pytest.raises(ValueError, match="weights=COCO_V9 is no weights .*COCO_V1"):
        load_detector(build_model(), "COCO_V9")


def test_no_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("no address for this host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    with pytest.raises(ValueError, match=r"cannot download backbone.weights=.* no address.*fetch"):
        build(18, weights="IMAGENET1K_V1")
    with pytest.raises(ValueError, match="cannot download weights=COCO_V1 from https://.*"):
        load_detector(build_model(), "COCO_V1")


def test_published_weights_are_loaded_by_name_and_want_their_epsilon(
    coco_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = torch.load(coco_file, weights_only=True)
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published
    )
    with pytest.raises(ValueError, match="epsilon of 0, .*: set backbone.norm_eps=0"):
        load_detector(build_model(class_names=COCO_80), "COCO_V1")
    load_detector(build_model("backbone.norm_eps=0", class_names=COCO_80), "COCO_V1")


class Malicious:
    def __reduce__(self) -> Any:
        return print, ("this code was run",)


def test_files_that_are_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no such file: nothing.pth"):
        read_file("nothing.pth")
    path = tmp_path / "file.pth"
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ValueError, match="is damaged"):
        read_file(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        read_file(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list"):
        read_file(path)
    torch.save({"weight": Malicious()}, path)
    with pytest.raises(ValueError, match="could run code"):
        read_file(path)
    path.write_bytes(pickle.dumps({"weight": Malicious()}))
    with pytest.raises(ValueError, match="could run code"):
        read_file(path)
    assert "this code was run" not in capsys.readouterr().out


def test_batch_norm_counters_may_be_missing_or_left_over(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    without = {key: value for key, value in state.items() if "num_batches" not in key}
    for name, content in (("with", state), ("without", without)):
        torch.save(content, tmp_path / name)
        for norm in ("bn", "frozen_bn"):
            body = build(18, norm=norm).body
            load_backbone(body, str(tmp_path / name), architecture="resnet18")
