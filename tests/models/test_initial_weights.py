"""Initial weights of every preset, by deviation and zeros, against the layers of its source."""

import math

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from mrcnn_lightning.models.detector import Detector
from tests.conftest import build_model, published

FAST = ["backbone.width=16", "model.neck.out_channels=64"]
SLIM = [*FAST, "model.box_head.trunk.hidden=256"]


def fans(layer: nn.Module) -> tuple[float, float]:
    """Numbers that go into and out of an output, as torch.nn.init counts them."""
    weight = layer.weight
    cells = weight[0, 0].numel()
    return weight.shape[1] * cells, weight.shape[0] * cells


def is_filled(layer: nn.Module, std: float, *, uniform: bool, zero_bias: bool = True) -> bool:
    weight = layer.weight.detach()
    error = 4 / math.sqrt(weight.numel())  # 4 standard errors and more of a deviation
    largest = weight.abs().max() / std
    shape = largest < math.sqrt(3) + 1e-3 if uniform else largest > 2.2
    bias = layer.bias is None or zero_bias == (not layer.bias.any())
    return bool(abs(weight.std() / std - 1) < error and shape and bias)


def he(layer: nn.Module) -> float:
    return math.sqrt(2 / fans(layer)[1])


def detectron2s(model: Detector) -> dict[nn.Module, tuple[float, bool]]:
    """Deviation of each layer by fvcore's weight_init and Detectron2's heads, and if uniform."""
    by_layer: dict[nn.Module, tuple[float, bool]] = {}
    for layer in model.neck.modules():  # c2_xavier_fill
        if isinstance(layer, nn.Conv2d):
            by_layer[layer] = (1 / math.sqrt(fans(layer)[0]), True)
    for layer in (*model.rpn.convs, model.rpn.objectness, model.rpn.deltas):
        by_layer[layer] = (0.01, False)
    for branch in getattr(model.box_head, "branches", None) or [model.box_head.branch]:
        for layer in branch.trunk.modules():
            if isinstance(layer, nn.Linear):  # c2_xavier_fill
                by_layer[layer] = (1 / math.sqrt(fans(layer)[0]), True)
            if isinstance(layer, nn.Conv2d):  # c2_msra_fill
                by_layer[layer] = (he(layer), False)
        by_layer |= {branch.classifier: (0.01, False), branch.deltas: (0.001, False)}
    for layer in model.mask_head.trunk.modules():  # c2_msra_fill
        if isinstance(layer, nn.Conv2d):
            by_layer[layer] = (he(layer), False)
    by_layer[model.mask_head.deconv] = (he(model.mask_head.deconv), False)
    by_layer[model.mask_head.classifier] = (0.001, False)
    return by_layer


@pytest.mark.parametrize(
    "model",
    ["mask_rcnn_d2", "mask_rcnn_d2_gn", "mask_rcnn_d2_dc5", "mask_rcnn_d2_c4", "cascade_mask_rcnn"],
)
def test_detectron2s(model: str) -> None:
    slim = ["backbone.width=16"] if model.endswith(("dc5", "c4")) else FAST
    hidden = [] if model.endswith("c4") else ["model.box_head.trunk.hidden=256"]
    detector = build_model(*published(model), *slim, *hidden)
    by_layer = detectron2s(detector)
    names = {layer: name for name, layer in detector.named_modules()}
    wrong = [
        names[layer]
        for layer, (std, uniform) in by_layer.items()
        if not is_filled(layer, std, uniform=uniform)
    ]
    assert not wrong
    parts = (detector.neck, detector.rpn, detector.box_head, detector.mask_head)
    layers = {layer for part in parts for layer in part.modules()}
    layers -= set(detector.backbone.modules())  # C4's last stage is the backbone's
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    assert {layer for layer in layers if isinstance(layer, kinds)} == set(by_layer)
    for name, layer in detector.backbone.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert is_filled(layer, he(layer), uniform=False), name


def test_torchvisions() -> None:
    model = build_model("backbone=resnet18", *SLIM, class_names=["class"] * 90)
    head, predictor = TwoMLPHead(64 * 49, 256), FastRCNNPredictor(256, 91)
    branch = model.box_head.branch
    for ours, theirs in [
        (branch.trunk.fc1, head.fc6),
        (branch.trunk.fc2, head.fc7),
        (branch.classifier, predictor.cls_score),
        (branch.deltas, predictor.bbox_pred),
    ]:
        std = theirs.weight.abs().max().item() / math.sqrt(3)  # of a uniform distribution
        assert is_filled(ours, std, uniform=True, zero_bias=False)
        assert ours.bias.std().item() == pytest.approx(theirs.bias.std().item(), rel=0.5)


def test_matterports() -> None:
    """Keras's glorot_uniform, which no layer there changes, and zero biases."""
    model = build_model(*published("matterport"), *SLIM, "model.rpn.hidden=64")
    count = 0
    for part in (model.neck, model.rpn, model.box_head, model.mask_head):
        for name, layer in part.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                std = math.sqrt(2 / sum(fans(layer)))
                assert is_filled(layer, std, uniform=True), name
                count += 1
    assert count == 8 + 3 + 4 + 6


def test_vggs() -> None:
    """torchvision's VGG without weights, and py-faster-rcnn's last layers."""
    model = build_model(*published("faster_rcnn_vgg16"), "model.box_head.trunk.hidden=64")
    branch = model.box_head.branch
    for layer, std in [
        (branch.trunk.fc1, 0.01),
        (branch.trunk.fc2, 0.01),
        (branch.classifier, 0.01),
        (branch.deltas, 0.001),
        (model.rpn.objectness, 0.01),
    ]:
        assert is_filled(layer, std, uniform=False)


def test_what_is_trained_from_nothing_starts_as_in_the_papers() -> None:
    for experiment in ("shapes", "balloon"):
        branch = build_model(f"experiment={experiment}", "backbone.weights=null").box_head.branch
        assert is_filled(branch.classifier, 0.01, uniform=False)
        assert is_filled(branch.deltas, 0.001, uniform=False)


def test_one_seed_gives_one_model() -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(build_model("backbone=resnet18", *SLIM).state_dict())
    one, same, other = models
    assert all(torch.equal(one[key], same[key]) for key in one)
    key = "box_head.branch.classifier.weight"
    assert not torch.equal(one[key], other[key])
