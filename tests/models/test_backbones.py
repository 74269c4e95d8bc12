from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models.backbones import Backbone, mobilenet_v2, resnet


def build(depth: int = 18, **changes: object) -> Backbone:
    arguments = {
        "depth": depth,
        "width": 64,
        "norm": "bn",
        "norm_eps": 1e-5,
        "trainable_stages": 5,
        "weights": None,
    }
    return resnet(**(arguments | changes))  # type: ignore[arg-type]


def shake(model: nn.Module) -> None:
    """Batch-norm statistics that are not trivial."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_resnet_is_torchvisions(depth: int, tmp_path: Path) -> None:
    peer = getattr(torchvision.models, f"resnet{depth}")()
    shake(peer)
    torch.save(peer.state_dict(), tmp_path / "resnet.pth")
    backbone = build(depth, norm="frozen_bn", weights=str(tmp_path / "resnet.pth")).double()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    peer.double()
    features = peer.eval().maxpool(peer.relu(peer.bn1(peer.conv1(image))))
    for ours, layer in zip(
        backbone(image), (peer.layer1, peer.layer2, peer.layer3, peer.layer4), strict=True
    ):
        features = layer(features)
        assert (ours - features).abs().max() <= 1e-9 * features.abs().max()
    shapes = [(feature.shape[1], 64 // feature.shape[2]) for feature in backbone(image)]
    assert shapes == list(zip(backbone.out_channels, backbone.strides, strict=True))


def test_mobilenet_is_torchvisions(tmp_path: Path) -> None:
    peer = torchvision.models.mobilenet_v2()
    shake(peer)
    torch.save(peer.state_dict(), tmp_path / "mobilenet.pth")
    backbone = mobilenet_v2(
        norm="frozen_bn",
        norm_eps=1e-5,
        trainable_stages=3,
        weights=str(tmp_path / "mobilenet.pth"),
    )
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    maps = backbone.double()(image)
    expected = peer.double().eval().features(image)
    assert (maps[-1] - expected).abs().max() <= 1e-9 * expected.abs().max()
    shapes = [(feature.shape[1], 64 // feature.shape[2]) for feature in maps]
    assert shapes == list(zip(backbone.out_channels, backbone.strides, strict=True))


def test_slim_resnet_has_its_own_widths() -> None:
    maps = build(width=24)(torch.randn(1, 3, 64, 64))
    assert [feature.shape[1] for feature in maps] == [24, 48, 96, 192]


@pytest.mark.parametrize("trainable", [0, 3, 5])
def test_frozen_stages_neither_learn_nor_move_their_statistics(trainable: int) -> None:
    backbone = build(trainable_stages=trainable).train()
    stages = [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"]]
    for number, stage in enumerate(stages):
        for name in stage:
            layer = backbone.body.get_submodule(name)
            learns = number >= 5 - trainable
            assert all(parameter.requires_grad == learns for parameter in layer.parameters())
            assert layer.training == learns

    def statistics() -> Tensor:
        return torch.cat([buffer.flatten().float() for buffer in backbone.buffers()]).clone()

    before = statistics()
    backbone(torch.randn(2, 3, 64, 64))
    assert torch.equal(before, statistics()) == (trainable == 0)


def test_frozen_batch_norm_everywhere() -> None:
    backbone = build(norm="frozen_bn")
    kinds = {type(layer) for layer in backbone.modules() if "Norm" in type(layer).__name__}
    assert kinds == {FrozenBatchNorm2d}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 42}, "backbone.depth=42 is not one of"),
        ({"norm": "batch"}, "backbone.norm=batch is not known: it is one of frozen_bn, bn"),
        ({"trainable_stages": 6}, "backbone.trainable_stages=6 is not between 0 and 5"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)  # type: ignore[arg-type]
