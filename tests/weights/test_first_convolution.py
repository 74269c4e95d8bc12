from pathlib import Path

import hydra
import pytest
import torch
import torchvision

from mrcnn_lightning.models.backbones.backbone import Backbone
from mrcnn_lightning.weights.first_convolution import adapted
from mrcnn_lightning.weights.load import load_backbone, load_detector
from tests.conftest import build_model, compose

SLIM = ["model=mask_rcnn_slim", "backbone=resnet18_slim"]


def pixels(channels: int) -> list[str]:
    """Overrides for images of so many channels."""
    numbers = ["backbone.pixels.mean", "backbone.pixels.std"]
    return [f"data.channels={channels}", *(f"{key}={[50.0] * channels}" for key in numbers)]


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 6, 16])
def test_convolutions_are_adapted_by_timms_rule(channels: int) -> None:
    timm = pytest.importorskip("timm")
    weight = torch.randn(8, 3, 7, 7)
    expected = timm.models.adapt_input_conv(channels, weight)
    torch.testing.assert_close(adapted(weight, channels), expected, rtol=1e-6, atol=0)


def build_backbone(*overrides: str) -> Backbone:
    """A backbone as the command line composes it."""
    backbone: Backbone = hydra.utils.instantiate(compose(*overrides).backbone, _convert_="all")
    return backbone.eval()


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_a_classifiers_file_fits_any_channels(tmp_path: Path, name: str) -> None:
    file = tmp_path / "weights.pth"
    plain = build_backbone(f"backbone={name}", "backbone.weights=null")
    state = plain.body.state_dict()
    prefix = "" if name.startswith("resnet") else "features."
    torch.save({f"{prefix}{key}": value for key, value in state.items()}, file)
    first = next(iter(state))
    for channels in (1, 5):
        backbone = build_backbone(f"backbone={name}", *pixels(channels), f"backbone.weights={file}")
        load_backbone(backbone)
        found = backbone.body.state_dict()
        assert torch.equal(found.pop(first), adapted(state[first], channels))
        assert all(torch.equal(value, state[key]) for key, value in found.items())
        if channels == 1:
            grey = torch.randn(1, 1, 64, 64)
            for one, three in zip(backbone(grey), plain(grey.expand(1, 3, -1, -1)), strict=True):
                torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny", "vgg16", "efficientnet_b0"])
def test_backbones_take_any_channels(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(f"backbone={name}", *pixels(5))
        assert backbone(torch.zeros(1, 5, 64, 64))[0].shape[0] == 1


def test_timms_own_fit_and_its_files_agree(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    whole = timm.create_model("resnet18")
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    chosen = ["backbone=timm", "backbone.name=resnet18", *pixels(5)]
    backbone = build_backbone(*chosen, f"backbone.weights={tmp_path}/weights.pth")
    load_backbone(backbone)
    expected = timm.models.adapt_input_conv(5, whole.conv1.weight)
    torch.testing.assert_close(backbone.body.conv1.weight, expected)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_checkpoints_fit_any_channels(tmp_path: Path, order: str) -> None:
    state = build_model(*SLIM).state_dict()
    description = {
        "class_names": ["disc", "box", "triangle"],
        "model": {"backbone": {"pixels": {"channel_order": order}}},
    }
    whole = {f"model.{key}": value for key, value in state.items()}
    torch.save({"mrcnn_lightning": description, "state_dict": whole}, tmp_path / "a.ckpt")
    model = build_model(*SLIM, *pixels(5))
    load_detector(model, str(tmp_path / "a.ckpt"))
    weight = state["backbone.body.conv1.weight"]
    weight = weight.flip(1) if order == "BGR" else weight
    assert torch.equal(model.backbone.body.conv1.weight, adapted(weight, 5))


def test_torchvisions_detectors_fit_any_channels(tmp_path: Path) -> None:
    detection = torchvision.models.detection
    theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    model = build_model(*pixels(4))
    load_detector(model, str(tmp_path / "a.pth"))
    expected = adapted(theirs.backbone.body.conv1.weight, 4)
    assert torch.equal(model.backbone.body.conv1.weight, expected)
