"""py-faster-rcnn against the golden values that were computed with numpy from its definition."""

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.ops.boxes import decode, encode, iou
from mrcnn_lightning.structures import Targets
from mrcnn_lightning.weights.load import load_weights
from tests.conftest import SHARED, build_model, compose, make_batch, published

SIDE = 50  # cells of an 800 x 800 image


@pytest.fixture(scope="module")
def golden() -> Any:
    path = SHARED / "reference" / "golden_rpn.json"
    if not path.exists():
        pytest.skip(f"the reference models are not here: {path}")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def model() -> Detector:
    return build_model(*published("faster_rcnn_vgg16"), "model.box_head.trunk.hidden=32").double()


@pytest.fixture(scope="module")
def anchors(model: Detector) -> Tensor:
    """In the golden order: cells column by column, which is the other way round than ours."""
    feature = torch.zeros(1, 512, SIDE, SIDE, dtype=torch.float64)
    ours = model.rpn.anchors([feature], model.rpn.strides, (800, 800))
    return ours.view(SIDE, SIDE, 9, 4).transpose(0, 1).reshape(-1, 4)


def test_golden_values(golden: Any, model: Detector, anchors: Tensor) -> None:
    def near(ours: Tensor, theirs: Any) -> None:
        expected = torch.tensor(theirs, dtype=torch.float64)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)

    assert len(anchors) == golden["num_anchors"]
    near(anchors[:9], golden["anchors_of_first_cell_xyxy"])
    near(anchors[:3], golden["first_three_anchors_xyxy"])
    near(anchors[-3:], golden["last_three_anchors_xyxy"])

    objects = torch.tensor([golden["objects_xyxy"]], dtype=torch.float64)
    targets = Targets(
        boxes=objects,
        labels=torch.ones(1, 2, dtype=torch.int64),
        crowd=torch.zeros(1, 2, dtype=torch.bool),
        masks=None,
        mask_frames=None,
    )
    window = torch.tensor([[0.0, 0, 800, 800]], dtype=torch.float64)
    inside = (anchors >= 0).all(1) & (anchors <= 800).all(1)
    assert inside.sum() == golden["num_anchors_inside"]
    matched, label = model.rpn.sampler.label(anchors, targets, window)
    assert (label[0, ~inside] == -1).all()
    matched, label, kept = matched[0, inside], label[0, inside], anchors[inside]
    counts = golden["labels_before_sampling"]
    assert (label == 1).sum() == counts["positive"]
    assert (label == 0).sum() == counts["negative"]
    assert (label == -1).sum() == counts["ignored"]

    ious = iou(objects[0], kept)
    assert ious.argmax(1).tolist() == golden["best_anchor_of_each_object"]
    near(ious.amax(1), golden["best_iou_of_each_object"])
    near(ious.amax(0)[:3], golden["max_iou_of_first_three_inside"])
    # All positives are ties for an object's best: no IoU reaches 0.7.
    assert torch.nonzero(label == 1)[:, 0].tolist() == golden["anchors_tied_for_best"]

    deltas = encode(objects[0, matched], kept, model.rpn.delta_weights)
    near(deltas[:3], golden["deltas_dxdydwdh_first_three_inside"])
    near(deltas[-3:], golden["deltas_dxdydwdh_last_three_inside"])

    hidden = torch.zeros(1, 512, SIDE, SIDE, dtype=torch.float64)
    shapes = golden["rpn_output_shapes"]
    assert list(model.rpn.deltas(hidden).shape) == shapes["deltas"]
    assert list(model.rpn.objectness(hidden).shape) == shapes["logits"]


def test_sampling_takes_half_positives_at_most_and_only_anchors_inside(model: Detector) -> None:
    boxes = [[[40.0, 40, 200, 180], [150, 100, 310, 300]]]
    batch = make_batch([(320, 352)], boxes, [[1, 2]], dtype=torch.float64)
    assert batch.targets is not None
    feature = torch.zeros(1, 512, 20, 22, dtype=torch.float64)
    anchors = model.rpn.anchors([feature], model.rpn.strides, (320, 352))
    sampled, _ = model.rpn.sampler(anchors, batch.targets, batch.windows, batch.seeds)
    chosen = anchors[sampled.indices[sampled.valid]]
    assert len(chosen) > 50 and sampled.positive.sum() <= 128 and sampled.positive.any()
    assert (chosen >= 0).all() and (chosen[:, 2] <= 352).all() and (chosen[:, 3] <= 320).all()


def test_backbone_is_vggs_up_to_conv5_3_and_its_first_ten_layers_are_fixed(
    model: Detector,
) -> None:
    backbone = model.backbone
    maps = deepcopy(backbone).to("meta")(torch.zeros(1, 3, 800, 800, device="meta").double())
    assert [tuple(feature.shape) for feature in maps] == [(1, 512, 50, 50)]
    peer = torchvision.models.vgg16().features[:30].double()
    peer.load_state_dict(backbone.body.state_dict())
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(backbone(image)[0], peer(image), rtol=0, atol=1e-12)
    for number, layer in enumerate(backbone.body):
        for parameter in layer.parameters():
            assert parameter.requires_grad == (number >= 10)


def test_row_by_row(model: Detector) -> None:
    rpn, head = model.rpn, model.box_head
    for layer in (rpn.convs[0], rpn.objectness, rpn.deltas):
        assert abs(layer.weight.std().item() - 0.01) < 0.001 and not layer.bias.any()
    assert (rpn.convs[0].kernel_size, rpn.convs[0].out_channels) == ((3, 3), 512)
    assert list(rpn.delta_weights) == [1, 1, 1, 1]
    assert list(head.branch.delta_weights) == [10, 10, 5, 5]
    assert (rpn.selector.pre_nms_topk, rpn.selector.num_proposals) == (6000, 300)
    assert rpn.selector.pre_nms_topk_in_training == 12000
    assert rpn.selector.num_proposals_in_training == 2000
    assert (rpn.selector.nms_iou, rpn.selector.min_side) == (0.7, 16)
    sampler = model.roi_sampler
    assert (sampler.num_rois, sampler.positive_fraction, sampler.add_ground_truth) == (
        128,
        0.25,
        True,
    )
    assert (sampler.positive_iou, sampler.negative_iou) == (0.5, 0.5)
    assert (rpn.box_loss.beta, head.branch.box_loss.beta) == (pytest.approx(1 / 9), 1.0)
    assert head.branch.classifier.out_features == 4 and head.branch.deltas.out_features == 12
    assert abs(head.branch.classifier.weight.std().item() - 0.01) < 0.003
    assert abs(head.branch.deltas.weight.std().item() - 0.001) < 0.0003
    assert (head.selector.min_score, head.selector.nms_iou) == (0.05, 0.3)
    cfg = compose("experiment=faster_rcnn_vgg16")
    assert cfg.model.box_head.trunk.hidden == 4096
    assert (cfg.data.resize.min_size, cfg.data.resize.max_size) == (600, 1000)
    assert (cfg.optimizer.lr, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (
        0.001,
        0.9,
        0.0005,
    )
    assert cfg.backbone.pixels.mean == [123.675, 116.28, 103.53]
    assert cfg.backbone.pixels.channel_order == "RGB"


def test_boxes_under_16_pixels_are_dropped(model: Detector) -> None:
    batch = make_batch([(160, 160)], [[]], [[]], dtype=torch.float64)
    output = model.rpn([torch.randn(1, 512, 10, 10, dtype=torch.float64)], (160, 160))
    output = output._replace(deltas=torch.randn_like(output.deltas) * 2 - 1)
    proposals = model.rpn.propose(output, batch, training=True)
    boxes = proposals.boxes[proposals.valid]
    assert len(boxes) > 20 and (boxes[:, 2:] - boxes[:, :2]).min() >= 16


def test_small_boxes_go_before_candidates_are_counted(model: Detector) -> None:
    """The order of py-faster-rcnn's proposal layer: clip, drop what is small, sort, cut, NMS."""
    batch = make_batch([(160, 160), (128, 160)], [[], []], [[], []], dtype=torch.float64)
    output = model.rpn([torch.randn(2, 512, 10, 10, dtype=torch.float64)], (160, 160))
    shifts, sides = torch.randn(2, 2, 900, 2, dtype=torch.float64)
    output = output._replace(
        objectness=torch.randn(2, 900, dtype=torch.float64),
        deltas=torch.cat([shifts / 5, sides - 2.5], dim=2),  # many are small
    )
    selector = deepcopy(model.rpn.selector)
    selector.pre_nms_topk, selector.num_proposals = 100, 100
    found = selector(output, batch.windows, training=False)
    for image, (width, height) in enumerate(batch.windows[:, 2:].tolist()):
        boxes = decode(output.deltas[image], output.anchors, [1.0] * 4)
        boxes = torchvision.ops.clip_boxes_to_image(boxes, (int(height), int(width)))
        scores = output.objectness[image]
        large = torchvision.ops.remove_small_boxes(boxes, 16)
        assert 100 < len(large) < 600
        best = large[scores[large].argsort(descending=True)][:100]
        kept = best[torchvision.ops.nms(boxes[best], scores[best], 0.7)]
        assert torch.equal(found.anchors[image][found.valid[image]], kept)
        torch.testing.assert_close(found.boxes[image][found.valid[image]], boxes[kept])


def test_heads_are_vggs_layers_with_its_weights(tmp_path: Any) -> None:
    peer = torchvision.models.vgg16()
    torch.save(peer.state_dict(), tmp_path / "vgg16.pth")
    model = build_model(*published("faster_rcnn_vgg16"), f"backbone.weights={tmp_path}/vgg16.pth")
    load_weights(model, None)
    pooled = torch.randn(2, 512, 7, 7)
    expected = torch.nn.Sequential(*[peer.classifier[i] for i in (0, 1, 3, 4)])(pooled.flatten(1))
    torch.testing.assert_close(model.box_head.branch.trunk(pooled), expected)
    features = model.backbone.body.state_dict()
    assert all(torch.equal(features[key], peer.features.state_dict()[key]) for key in features)
    # Layers of another size start afresh.
    weights = f"backbone.weights={tmp_path}/vgg16.pth"
    model = build_model(*published("faster_rcnn_vgg16"), weights, "model.box_head.trunk.hidden=64")
    load_weights(model, None)
    assert abs(model.box_head.branch.trunk.fc1.weight.std().item() - 0.01) < 0.001
