import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mrcnn_lightning.app.summary import Part, Summary, render, summarize
from mrcnn_lightning.checkpoint import Description, Rebuilt
from mrcnn_lightning.data.sizing import (
    Canvas,
    CentredSquare,
    PadToMultiple,
    Resize,
    enlarged,
    shorter_side,
)
from mrcnn_lightning.models.detector import Detector
from tests.conftest import build_model, compose, published

NAMES_90 = [str(label) for label in range(1, 91)]
NAMES_80 = NAMES_90[:80]
SLIM = ("backbone=resnet18", "backbone.norm=bn", "backbone.width=8", "model.neck.out_channels=16")
SMALL = Resize(rule=shorter_side, min_size=64, max_size=96)


def summary_of(
    *overrides: str,
    class_names: list[str] | None = None,
    resize: Resize = SMALL,
    canvas: Canvas | None = None,
) -> Summary:
    model = build_model(*overrides, class_names=class_names)
    config = OmegaConf.to_container(compose(*overrides).model, resolve=True)
    canvas = canvas or PadToMultiple(multiple=32)
    return summarize(Rebuilt(model, described(config), resize, canvas))


def described(config: Any, class_names: Sequence[str] = ()) -> Description:
    sizing: dict[str, Any] = {"resize": {}, "canvas": {}}
    return Description(
        model=config, class_names=list(class_names), category_ids=[], show_score=0.5, **sizing
    )


def parts_of(summary: Summary) -> dict[str, Part]:
    return {part.name: part for part in summary.parts}


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = function(*arguments)
    return output, counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("mask_rcnn", "MaskRCNN_ResNet50_FPN_Weights.COCO_V1"),  # 44,401,393
        ("mask_rcnn_v2", "MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1"),
        ("faster_rcnn", "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"),
        ("faster_rcnn_v2", "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1"),
        ("faster_rcnn_mobilenet_v3", "FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1"),
    ],
)
def test_parameters_are_those_that_torchvision_publishes(model: str, weights: str) -> None:
    """But for the box and the mask of the background, which torchvision has and never uses.

    Its 91 rows are the background and 90 classes. Ours are as many scores, but 90 x 4 deltas of
    1024 weights and a bias each, not 91 x 4, and 90 masks of 256 weights and a bias each.
    """
    theirs = torchvision.models.get_weight(weights).meta["num_params"]
    background = 4 * (1024 + 1) + (256 + 1 if model.startswith("mask") else 0)
    parts = summary_of(*published(model), class_names=NAMES_90).parts
    assert sum(part.parameters for part in parts) == theirs - background


def test_multiply_adds_are_torchvisions_part_by_part() -> None:
    """Counted over torchvision's own modules at 800 x 1344.

    Less the background's box and all masks but one: a detection's own class is known by then.
    """
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=81
    )
    theirs.to("meta").eval()
    pooled = [torch.zeros(n, 256, side, side, device="meta") for n, side in ((1000, 7), (100, 14))]
    images = torch.zeros(1, 3, 800, 1344, device="meta")
    features, backbone = multiply_adds(theirs.backbone, images)
    _, body = multiply_adds(theirs.backbone.body, images)
    _, rpn = multiply_adds(theirs.rpn.head, list(features.values()))
    heads = theirs.roi_heads
    hidden, box_trunk = multiply_adds(heads.box_head, pooled[0])
    _, box = multiply_adds(heads.box_predictor, hidden)
    hidden, mask_trunk = multiply_adds(heads.mask_head, pooled[1])
    _, mask = multiply_adds(heads.mask_predictor, hidden)

    summary = summary_of(
        class_names=NAMES_80, resize=Resize(rule=shorter_side, min_size=800, max_size=1333)
    )
    assert summary.canvas_size == (800, 1344)
    ours = {name: part.multiply_adds for name, part in parts_of(summary).items()}
    assert ours == {
        "backbone": body,
        "neck": backbone - body,
        "rpn": rpn,
        "box_head": box_trunk + box - 1000 * 1024 * 4,
        "mask_head": mask_trunk + mask - 100 * 28 * 28 * 256 * 80,
    }
    # ResNet-50's own 4.09 GFLOPs at 224 x 224, as torchvision publishes them, less its classifier.
    published = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["_ops"]
    scale = 800 * 1344 / 224**2
    assert body / 1e9 == pytest.approx((published - 2048 * 1000 / 1e9) * scale, rel=2e-3)


def test_the_backbones_last_stage_counts_where_it_is_applied() -> None:
    backbone = ("backbone=resnet50", "backbone.outputs=[layer3]", "backbone.roi_layer=layer4")
    summary = summary_of("model=mask_rcnn_d2_c4", *backbone, class_names=NAMES_80)
    layer4 = torchvision.models.resnet50(weights=None).layer4.to("meta").eval()
    _, one = multiply_adds(layer4, torch.zeros(1, 1024, 14, 14, device="meta"))
    parts = parts_of(summary)
    assert parts["box_head"].multiply_adds == 1000 * (one + 2048 * (81 + 80 * 4))
    assert parts["box_head"].parameters == 2049 * (81 + 80 * 4)
    mask = 7 * 7 * 4 * 2048 * 256 + 14 * 14 * 256
    assert parts["mask_head"].multiply_adds == 100 * (one + mask)


def test_all_stages_of_a_cascade_count() -> None:
    box_head = parts_of(summary_of(*published("cascade_mask_rcnn"), class_names=NAMES_80))[
        "box_head"
    ]
    stage = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 4)
    assert box_head.multiply_adds == 3 * 1000 * stage
    assert box_head.what == "CascadeBoxHead, RoIAlign 7, 3 x TwoFC"


def test_trainable_are_those_that_an_optimizer_gets() -> None:
    whole = parts_of(summary_of(*SLIM, "backbone.trainable_stages=5"))
    fixed = parts_of(summary_of(*SLIM, "backbone.trainable_stages=0"))
    assert whole["backbone"].trainable == whole["backbone"].parameters > 0
    assert fixed["backbone"].trainable == 0
    assert fixed["backbone"].parameters == whole["backbone"].parameters
    assert fixed["neck"] == whole["neck"]


@pytest.mark.parametrize(
    ("resize", "canvas", "image_size", "canvas_size"),
    [
        (
            Resize(rule=shorter_side, min_size=800, max_size=1333),
            PadToMultiple(multiple=32),
            (800, 1333),
            (800, 1344),
        ),
        (
            Resize(rule=shorter_side, min_size=600, max_size=1000),
            PadToMultiple(multiple=1),
            (600, 1000),
            (600, 1000),
        ),
        (
            Resize(rule=enlarged, min_size=800, max_size=1024),
            CentredSquare(side=1024),
            (800, 1024),
            (1024, 1024),
        ),
    ],
)
def test_input_and_anchors_are_of_a_full_size_image(
    resize: Resize, canvas: Canvas, image_size: tuple[int, int], canvas_size: tuple[int, int]
) -> None:
    summary = summary_of(*SLIM, resize=resize, canvas=canvas)
    assert (summary.image_size, summary.canvas_size) == (image_size, canvas_size)
    assert [level.stride for level in summary.levels] == [4, 8, 16, 32, 64]
    for level in summary.levels:
        height, width = (-(-side // level.stride) for side in canvas_size)
        assert level.size == (height, width)
        assert level.anchors == height * width * 3
    assert [list(level.sizes) for level in summary.levels] == [[32], [64], [128], [256], [512]]


# Each has operators of its own that must go without values.
@pytest.mark.parametrize("backbone", ["swin_t", "convnext_tiny", "mobilenet_v3_small"])
def test_backbones_of_all_kinds(backbone: str) -> None:
    layers = torchvision.models.get_model(backbone).to("meta").features
    summary = summary_of(f"backbone={backbone}", resize=SMALL)
    part = parts_of(summary)["backbone"]
    images = torch.zeros(1, 3, *summary.canvas_size, device="meta")
    _, counted = multiply_adds(layers.eval(), images)
    assert part.multiply_adds == counted
    assert part.what.startswith(f"torchvision_features, name {backbone}")


def test_timms_backbones() -> None:
    pytest.importorskip("timm")
    ours, timms = (
        parts_of(summary_of(f"backbone={name}", "model=faster_rcnn"))["backbone"]
        for name in ("resnet50", "timm")
    )
    assert timms.multiply_adds == ours.multiply_adds
    assert timms.what == "timm, name resnet50"


@pytest.mark.parametrize(
    "model", ["matterport", "faster_rcnn_vgg16", "mask_rcnn_d2_dc5", "mask_rcnn_d2_gn"]
)
def test_models_of_all_kinds(model: str) -> None:
    summary = summary_of(*published(model), "model.box_head.trunk.hidden=64")
    assert all(part.multiply_adds > 0 for part in summary.parts if part.parameters)


def test_the_model_stays_as_it_is() -> None:
    model: Detector = build_model("experiment=shapes")
    model.train()
    before, pooler = copy.deepcopy(model.state_dict()), model.box_head.roi_features.pooler
    config = {"backbone": {"_target_": "a.b", "depth": 18, "norm": None}}
    rebuilt = Rebuilt(model, described(config), SMALL, PadToMultiple(multiple=32))
    assert summarize(rebuilt).parts[0].what == "b, depth 18"
    assert model.training and model.box_head.roi_features.pooler is pooler
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(isinstance(value, nn.Parameter) for value in model.parameters())


def test_what_is_shown() -> None:
    names = ["[red]", *(f"class {label}" for label in range(2, 13))]
    model = build_model(*SLIM, "model=faster_rcnn", class_names=names)
    config = OmegaConf.to_container(compose(*SLIM, "model=faster_rcnn").model, resolve=True)
    console = Console(width=80, record=True)
    for names_known in ([], names):
        description = described(config, names_known)
        console.print(
            *render(summarize(Rebuilt(model, description, SMALL, PadToMultiple(multiple=32)))),
            sep="\n",
        )
        shown = console.export_text()
        total = sum(parameter.numel() for parameter in model.parameters())
        assert f"{total:,}" in shown and "mask_head" not in shown
        assert "64 x 96 (height x width of a full-size image), canvas 64 x 96" in shown
        assert ("classes: 12: [red], class 2, " in shown) == bool(names_known)
    assert "class 10, ..." in shown and "class 11" not in shown
