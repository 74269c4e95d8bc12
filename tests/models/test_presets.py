"""Every backbone and every model of the configuration builds, trains a step and predicts."""

import re

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models.detector import Detector
from tests.conftest import build_model, make_batch, published
from tests.test_conf import options

# Little to sort and to pool; a small image has few anchors anyway.
FEW = [
    "model.rpn.selector.pre_nms_topk=40",
    "model.rpn.selector.pre_nms_topk_in_training=40",
    "model.rpn.selector.num_proposals=40",
    "model.rpn.selector.num_proposals_in_training=20",
    "model.roi_sampler.num_rois=16",
]
FPN_STRIDES = [4, 8, 16, 32, 64]
MAP_STRIDES = {
    "mobilenet_v3_large_c5": [32, 32],
    "resnet50_caffe_c4": [16],
    "resnet50_caffe_dc5": [16],
    "vgg16_conv5": [16],
}
STRIDES = {
    "faster_rcnn_mobilenet_v3": [32, 32, 64],
    "faster_rcnn_vgg16": [16],
    "mask_rcnn_d2_c4": [16],
    "mask_rcnn_d2_dc5": [16],
}


def train_a_step_and_predict(model: Detector, size: tuple[int, int] = (64, 96)) -> None:
    for layer in model.modules():  # or random features grow from layer to layer
        if isinstance(layer, FrozenBatchNorm2d):
            layer.weight.fill_(0.5)
    torch.nn.init.zeros_(model.rpn.deltas.weight)  # proposals are anchors, some of them right
    height, width = size
    boxes = [[[1.0, 1, width - 1, height - 1], [10, 12, 74, 60]]]
    batch = make_batch([size], boxes, [[1, 3]])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=1e-6)
    before = {name: parameter.clone() for name, parameter in trained.items()}
    losses = model.train().loss(batch)
    assert all(loss.isfinite() for loss in losses.values()) and len(losses) >= 4
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    moved = [
        name for name, parameter in trained.items() if not torch.equal(parameter, before[name])
    ]
    for part in ("rpn.", "box_head.", "neck." if list(model.neck.parameters()) else "rpn."):
        assert any(name.startswith(part) for name in moved), part
    found = model.eval().predict(batch)
    assert found.boxes.shape == (1, 100, 4) and found.boxes.isfinite().all()
    assert (found.masks is None) == (model.mask_head is None)
    features = model.features(batch)
    assert [height / level.shape[2] for level in features[:-1]] == model.neck.strides[:-1]


@pytest.mark.parametrize("name", options("backbone"))
def test_backbone(name: str) -> None:
    if name == "timm":
        pytest.importorskip("timm", reason='timm is an extra: pip install -e ".[timm]"')
    slim = ["backbone.width=32"] if re.match("(wide_)?res", name) else []
    strides = MAP_STRIDES.get(name, FPN_STRIDES[:4])
    sizes = ",".join(["[32,64]"] * (len(strides) + 1))
    sizes = f"model.rpn.anchors.sizes=[{sizes}]"
    neck = "model.neck.out_channels=32"
    if name == "resnet50_caffe_c4":
        neck, sizes = "model=mask_rcnn_d2_c4", "model.rpn.anchors.sizes=[[32,64]]"
    model = build_model(f"backbone={name}", *FEW, *slim, neck, sizes)
    assert model.backbone.strides == strides
    maps = model.backbone.eval()(torch.zeros(1, 3, 64, 64))
    assert [feature.shape[1] for feature in maps] == model.backbone.out_channels
    assert [64 // feature.shape[2] for feature in maps] == model.backbone.strides
    train_a_step_and_predict(model)


@pytest.mark.parametrize("name", options("model"))
def test_model(name: str) -> None:
    slim = ["model.box_head.trunk.hidden=128"] if name.endswith(("dc5", "vgg16")) else []
    if name == "matterport":  # ground truth is no RoI of its own: one must be found
        slim += [
            f"model.rpn.selector.{key}_in_training=2000"
            for key in ("pre_nms_topk", "num_proposals")
        ]
    model = build_model(*published(name), *FEW, *slim)
    assert model.neck.strides == STRIDES.get(name, FPN_STRIDES)
    assert (model.mask_head is None) == name.startswith("faster")
    # It learns from anchors inside the image alone, of 128 pixels and more.
    train_a_step_and_predict(model, (160, 224) if name == "faster_rcnn_vgg16" else (64, 96))


@pytest.mark.parametrize("norm", ["frozen_bn", "bn", "sync_bn", "gn"])
def test_norms_everywhere(norm: str) -> None:
    model = build_model(
        "backbone=resnet18",
        "backbone.width=16",
        f"backbone.norm={norm}",
        f"model.neck.norm={norm}",
        "model.neck.out_channels=32",
        "model/box_head=convs_fc",
        f"model.box_head.trunk.norm={norm}",
        f"model.mask_head.trunk.norm={norm}",
        *FEW,
    )
    train_a_step_and_predict(model)


@pytest.mark.parametrize(
    "override",
    [
        "model.box_head.class_agnostic=true",
        "model.mask_head.class_agnostic=true",
        "model/box_head=cascade",
        "model.box_head.pooler.sampling_ratio=0",
        "model/box_loss@model.box_head.box_loss=giou",
        "model/box_loss@model.rpn.box_loss=giou",
        "model/box_loss@model.rpn.box_loss=l1",
    ],
)
def test_variants(override: str) -> None:
    slim = ["backbone=resnet18", "backbone.width=16", "model.neck.out_channels=32", *FEW]
    train_a_step_and_predict(build_model(*slim, override))


@pytest.mark.parametrize("head", ["two_fc", "convs_fc", "cascade"])
def test_heads_after_the_stage_for_rois(head: str) -> None:
    slim = [
        *published("mask_rcnn_d2_c4"),
        "backbone.width=16",
        "model.box_head.pooler.output_size=14",
    ]
    train_a_step_and_predict(build_model(*slim, *FEW, f"model/box_head={head}"))


def test_unknown_layers_and_networks_are_named() -> None:
    for overrides, message in [
        (
            ["backbone.outputs=[layer7]"],
            "the backbone has no layer layer7 to hand out; it has conv1",
        ),
        (["backbone=vgg16", "backbone.name=vgg99"], "backbone.name=vgg99 .*no such network"),
        (["backbone=swin_t", "backbone.norm=bn"], "swin_t has norms of its own, .*norm=null"),
        (["backbone.form=keras"], "backbone.form=keras is not one of torchvision, caffe"),
        (["backbone=resnet18", "backbone.groups=32"], "has no bottlenecks"),
        (["backbone.pixels.channel_order=GBR"], "backbone.pixels.channel_order=GBR is not RGB"),
        (["model.rpn.logits_per_anchor=3"], "model.rpn.logits_per_anchor=3 .* 1 or 2 logits"),
        (["model.rpn.anchors.sizes=[[],[],[],[],[]]"], "at least one of them"),
        (["model.rpn.box_loss.mean_over=all"], "mean_over=all is not one of sampled, positives"),
        (["model.mask_head.trunk.num_convs=-1"], "num_convs=-1: give 0 or more"),
        (["model.roi_sampler.positive_fraction=2"], "positive_fraction=2: give 1 or more"),
        (["backbone=vgg16", "backbone.norm_eps=1e-3"], "a network's own has its own"),
    ]:
        with pytest.raises(Exception, match=message):
            build_model(*overrides)
