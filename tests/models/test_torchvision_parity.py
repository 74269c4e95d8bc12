"""Our Mask R-CNN against torchvision's, with the same weights and the same input.

In float64 each stage is fed with the peer's own input and must agree to 1e-9. In float32 the whole
is compared end to end, as sets: near-ties at the edge of a top-k make single proposals differ even
between torchvision and itself.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.models.rpn.rpn import RPNOutput
from mrcnn_lightning.structures import Batch, Detections
from mrcnn_lightning.weights import torchvision as torchvision_weights
from mrcnn_lightning.weights.load import load_detector
from mrcnn_lightning.weights.renaming import translate
from tests.conftest import build_model, make_batch, published
from tests.results.whole_masks import paste_masks

NUM_CLASSES = 7
SIZES = [(120, 160), (160, 102)]
CANVAS = (160, 160)
BOXES = [
    [[10.0, 20.0, 80.5, 90.0], [60.0, 40.0, 159.0, 119.0], [5.0, 80.0, 35.0, 110.25]],
    [[10.0, 12.0, 100.0, 150.0], [40.0, 60.0, 70.0, 91.0]],
]
LABELS = [[1, 2, 7], [3, 2]]


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


MODELS = {
    "maskrcnn_resnet50_fpn": ["model=mask_rcnn"],
    "maskrcnn_resnet50_fpn_v2": published("mask_rcnn_v2"),
    "fasterrcnn_resnet50_fpn_v2": published("faster_rcnn_v2"),
    "fasterrcnn_mobilenet_v3_large_fpn": [
        *published("faster_rcnn_mobilenet_v3"),
        "backbone.norm=bn",
    ],
}


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def peer(name: str) -> Any:
    """One of torchvision's models, with batch norm that is not trivial."""
    torch.manual_seed(0)
    model: Any = torchvision.models.get_model(
        name,
        weights=None,
        weights_backbone=None,
        num_classes=NUM_CLASSES + 1,
        box_detections_per_img=60,
        rpn_score_thresh=0.0,
    )
    if name == "maskrcnn_resnet50_fpn":  # as with weights: norms are frozen
        model.backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, trainable_layers=3
        )
    model.transform.resize = lambda image, target: (image, target)
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d | torch.nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(layer.weight, 0.4, 0.8)
            torch.nn.init.normal_(layer.bias, 0, 0.1)
    model.eval()
    spread_outputs(model)
    return model


@torch.no_grad()
def spread_outputs(model: Any) -> None:
    """Scale the last layers so that there are many different proposals and detections."""
    wanted = {
        model.rpn.head.cls_logits: 2.0,
        model.rpn.head.bbox_pred: 0.3,
        model.roi_heads.box_predictor.cls_score: 1.5,
        model.roi_heads.box_predictor.bbox_pred: 1.0,
    }
    if model.roi_heads.has_mask():
        wanted[model.roi_heads.mask_predictor.mask_fcn_logits] = 2.0
    for layer, spread in wanted.items():
        seen: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _, __, output: seen.append(output))  # noqa: B023
        model(peer_images(make_batch(SIZES, BOXES, LABELS), torch.float32))
        hook.remove()
        if seen[0].numel():
            layer.weight *= spread / seen[0].std()


@pytest.fixture(scope="module")
def ours(name: str, peer: Any, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = tmp_path_factory.mktemp("weights") / "torchvision.pth"
    torch.save(peer.state_dict(), path)
    model = build_model(
        *MODELS[name],
        "backbone.trainable_stages=" + ("3" if name == "maskrcnn_resnet50_fpn" else "5"),
        "model.rpn.selector.min_score=0.0",
        "model.roi_sampler.positive_fraction=0.25",
        "model.roi_sampler.num_rois=64",
        "model.box_head.selector.num_detections=60",
        class_names=[f"class {k}" for k in range(NUM_CLASSES)],
    )
    load_detector(model, str(path))
    return model.eval()


@pytest.fixture
def double(peer: Any, ours: Detector) -> Iterator[tuple[Any, Detector]]:
    yield peer.double(), ours.double()
    peer.float()
    ours.float()


@pytest.fixture
def batch() -> Batch:
    return make_batch(SIZES, BOXES, LABELS, dtype=torch.float64)


def peer_images(batch: Batch, dtype: torch.dtype) -> list[Tensor]:
    pixels = batch.images.to(dtype) / 255
    return [image[:, :h, :w] for image, (h, w) in zip(pixels, SIZES, strict=True)]


def peer_targets(batch: Batch, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    assert batch.targets is not None and batch.targets.masks is not None
    targets = []
    for i, (h, w) in enumerate(SIZES):
        real = batch.targets.labels[i] > 0
        targets.append(
            {
                "boxes": batch.targets.boxes[i, real].to(dtype),
                "labels": batch.targets.labels[i, real],
                "masks": batch.targets.masks[i, real, :h, :w],
            }
        )
    return targets


def named_levels(features: list[Tensor]) -> dict[str, Tensor]:
    """A pyramid as torchvision's heads want it."""
    levels = {str(level): feature for level, feature in enumerate(features[:-1])}
    return levels | {"pool": features[-1]}


def pyramid(peer: Any, images: list[Tensor]) -> tuple[Any, list[Tensor]]:
    canvas, _ = peer.transform(images)
    return canvas, list(peer.backbone(canvas.tensors).values())


def test_features(double: tuple[Any, Detector], batch: Batch) -> None:
    peer, ours = double
    canvas, features = pyramid(peer, peer_images(batch, torch.float64))
    assert relative(ours.normalize(batch), canvas.tensors) < 1e-9
    for our_level, level in zip(ours.features(batch), features, strict=True):
        assert relative(our_level, level) < 1e-9


def test_proposals(double: tuple[Any, Detector], batch: Batch) -> None:
    peer, ours = double
    canvas, features = pyramid(peer, peer_images(batch, torch.float64))
    named = dict(enumerate(features))
    theirs, _ = peer.rpn(canvas, named)
    output = ours.rpn(features, CANVAS)
    proposals, valid, _ = ours.rpn.propose(output, batch, training=False)
    for image, expected in enumerate(theirs):
        assert valid[image].sum() == len(expected) > 100
        assert relative(proposals[image, valid[image]], expected) < 1e-9


def test_detections(double: tuple[Any, Detector], batch: Batch) -> None:
    peer, ours = double
    canvas, features = pyramid(peer, peer_images(batch, torch.float64))
    named = named_levels(features)
    proposals, _ = peer.rpn(canvas, named)
    theirs, _ = peer.roi_heads(named, proposals, canvas.image_sizes)
    assert min(len(found["boxes"]) for found in theirs) >= 50

    most = max(len(boxes) for boxes in proposals)
    padded = torch.zeros(len(SIZES), most, 4, dtype=torch.float64)
    valid = torch.zeros(len(SIZES), most, dtype=torch.bool)
    for image, boxes in enumerate(proposals):
        padded[image, : len(boxes)], valid[image, : len(boxes)] = boxes, True
    found = ours.box_head.predict(features, padded, valid, batch.windows)
    masks = None if ours.mask_head is None else ours.mask_head.predict(features, found)
    for image, expected in enumerate(theirs):
        there = found.labels[image] > 0
        assert torch.equal(found.labels[image, there], expected["labels"])
        assert relative(found.boxes[image, there], expected["boxes"]) < 1e-9
        assert relative(found.scores[image, there], expected["scores"]) < 1e-9
        if masks is not None:
            assert relative(masks[image, there], expected["masks"][:, 0]) < 1e-9


def losses_of_peer(
    peer: Any, batch: Batch, output: RPNOutput, ours: Detector
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """torchvision's losses for the anchors and RoIs that we sample."""
    targets = peer_targets(batch, torch.float64)
    canvas, features = pyramid(peer, peer_images(batch, torch.float64))
    named = named_levels(features)
    rpn: RegionProposalNetwork = peer.rpn
    objectness, deltas = rpn.head(features)
    anchors = rpn.anchor_generator(canvas, features)
    objectness, deltas = torchvision.models.detection.rpn.concat_box_prediction_layers(
        objectness, deltas
    )
    labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
    labels = [label.double() for label in labels]  # or torchvision's loss falls back to float32
    goals = rpn.box_coder.encode(matched, anchors)
    sampled, _ = ours.rpn.sampler(output.anchors, batch.targets, batch.windows, batch.seeds)

    def same_anchors(_: Any) -> tuple[list[Tensor], list[Tensor]]:
        positive, negative = [], []
        for image in range(len(batch)):
            masks = torch.zeros(2, len(anchors[0]), dtype=torch.uint8)
            masks[0, sampled.indices[image, sampled.positive[image]]] = 1
            masks[1, sampled.indices[image, sampled.valid[image] & ~sampled.positive[image]]] = 1
            assert (labels[image][masks[0] > 0] == 1).all()
            assert (labels[image][masks[1] > 0] == 0).all()
            positive.append(masks[0])
            negative.append(masks[1])
        return positive, negative

    rpn.fg_bg_sampler = same_anchors
    loss_objectness, loss_rpn_box_reg = rpn.compute_loss(objectness, deltas, labels, goals)

    heads: RoIHeads = peer.roi_heads
    proposed = ours.rpn.propose(output, batch, training=True)
    proposals, valid, _ = proposed
    rois = ours.roi_sampler(proposed, batch.targets, batch.seeds)
    pool = heads.add_gt_proposals(
        [proposals[i, valid[i]] for i in range(len(batch))], [t["boxes"] for t in targets]
    )
    matched_objects, roi_labels = heads.assign_targets_to_proposals(
        pool, [t["boxes"] for t in targets], [t["labels"] for t in targets]
    )
    boxes, chosen_labels, chosen_objects, chosen_goals = [], [], [], []
    for i in range(len(batch)):
        # Our sample's places in torchvision's list of proposals.
        index = (rois.boxes[i, rois.valid[i], None] == pool[i]).all(-1).int().argmax(1)
        boxes.append(pool[i][index])
        assert torch.equal(boxes[-1], rois.boxes[i, rois.valid[i]])
        chosen_labels.append(roi_labels[i][index])
        assert torch.equal(chosen_labels[-1], rois.labels[i, rois.valid[i]])
        chosen_objects.append(matched_objects[i][index])
        chosen_goals.append(
            heads.box_coder.encode([targets[i]["boxes"][chosen_objects[-1]]], [boxes[-1]])[0]
        )
    pooled = heads.box_head(heads.box_roi_pool(named, boxes, canvas.image_sizes))
    loss_classifier, loss_box_reg = fastrcnn_loss(
        *heads.box_predictor(pooled), chosen_labels, chosen_goals
    )
    losses = {
        "loss_objectness": loss_objectness,
        "loss_rpn_box_reg": loss_rpn_box_reg,
        "loss_classifier": loss_classifier,
        "loss_box_reg": loss_box_reg,
    }
    if not heads.has_mask():
        return losses, features
    positive = [torch.nonzero(label > 0)[:, 0] for label in chosen_labels]
    positive_boxes = [box[index] for box, index in zip(boxes, positive, strict=True)]
    pooled = heads.mask_roi_pool(named, positive_boxes, canvas.image_sizes)
    loss_mask = maskrcnn_loss(
        heads.mask_predictor(heads.mask_head(pooled)),
        positive_boxes,
        [t["masks"] for t in targets],
        [t["labels"] for t in targets],
        [objects[index] for objects, index in zip(chosen_objects, positive, strict=True)],
    )
    return losses | {"loss_mask": loss_mask}, features


def test_losses_and_gradients(double: tuple[Any, Detector], batch: Batch) -> None:
    peer, ours = double
    assert batch.targets is not None and batch.targets.mask_frames is not None
    # torchvision cuts its mask targets half a pixel off (RoIAlign with aligned=False).
    batch.targets.mask_frames -= 0.5
    features = ours.features(batch)
    output = ours.rpn(features, CANVAS)
    expected, _ = losses_of_peer(peer, batch, output, ours)
    losses = ours.loss(batch)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert expected[name] > 1e-4
        assert relative(loss, expected[name]) < 1e-9, name

    torch.stack(list(expected.values())).sum().backward()
    torch.stack(list(losses.values())).sum().backward()
    pairs = dict(peer.named_parameters())
    translated, _, unknown = translate(
        {name: torch.tensor(float(i)) for i, name in enumerate(pairs)}, torchvision_weights.DETECTOR
    )
    assert not unknown and len(translated) == len(pairs)
    compared = 0
    for name, index in translated.items():
        parameter = list(pairs.values())[int(index)]
        own = ours.get_parameter(name)
        if parameter.grad is None:
            assert own.grad is None, name
            continue
        assert own.grad is not None, name
        gradient = parameter.grad[-len(own) :]  # less the background's boxes and masks
        # A bias before a batch norm has no gradient but what rounding leaves.
        if gradient.abs().max() > 1e-12:
            assert relative(own.grad, gradient) < 1e-8, name
            compared += 1
    assert compared > 50
    trained = sum(parameter.grad is not None for parameter in ours.parameters())
    assert trained == sum(parameter.grad is not None for parameter in peer.parameters())
    peer.zero_grad()
    ours.zero_grad()


def test_float32_end_to_end(peer: Any, ours: Detector) -> None:
    batch = make_batch(SIZES, BOXES, LABELS)
    with torch.no_grad():
        theirs = peer(peer_images(batch, torch.float32))
    found: Detections = ours.predict(batch)
    left_over, total = 0, 0
    for image, expected in enumerate(theirs):
        assert len(expected["boxes"]) >= 50
        total += len(expected["boxes"])
        there = found.labels[image] > 0
        boxes, scores = found.boxes[image, there], found.scores[image, there]
        distance = (expected["boxes"][:, None] - boxes).abs().amax(-1)
        close = (distance < 1e-2) & ((expected["scores"][:, None] - scores).abs() < 1e-5)
        close &= expected["labels"][:, None] == found.labels[image, there]
        assert close.any(0).sum() <= close.any(1).sum() + 2
        left_over += int((~close.any(1)).sum())
        if found.masks is None:
            continue
        pasted = paste_masks(found.masks[image, there], boxes, SIZES[image])
        pairs = torch.nonzero(close & (close.cumsum(1) == 1))
        theirs_pasted = expected["masks"][pairs[:, 0], 0] > 0.5
        differing = (pasted[pairs[:, 1]] != theirs_pasted).sum()
        assert differing <= 1e-4 * theirs_pasted.sum()
    print(f"{left_over} of {total} detections left over")
    assert left_over <= 2
