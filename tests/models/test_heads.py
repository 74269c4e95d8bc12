"""Training of the cascade, and what the selectors choose, against their definitions."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from mrcnn_lightning.models.heads.cascade_head import CascadeBoxHead
from mrcnn_lightning.models.heads.detections import ArgmaxSelector, DetectionSelector
from mrcnn_lightning.models.heads.roi_sampler import SampledRoIs
from mrcnn_lightning.ops.boxes import clip, decode, encode
from tests.conftest import build_model, make_batch
from tests.ops.test_boxes import random_boxes

SLIM = ["backbone=resnet18", "backbone.width=16", "model.neck.out_channels=16"]


@pytest.fixture
def cascade() -> CascadeBoxHead:
    torch.manual_seed(0)
    model = build_model("model=cascade_mask_rcnn", *SLIM, "model.box_head.trunk.hidden=24").double()
    head = model.box_head
    assert isinstance(head, CascadeBoxHead)
    for branch in head.branches:
        torch.nn.init.normal_(branch.deltas.weight, std=0.3)
        torch.nn.init.normal_(branch.classifier.weight, std=0.5)
    return head


def test_each_stage_of_a_cascade_learns_from_the_boxes_of_the_one_before(
    cascade: CascadeBoxHead,
) -> None:
    batch = make_batch(
        [(128, 128)],
        [[[10.0, 12, 74, 92], [50, 30, 120, 90]]],
        [[1, 3]],
        dtype=torch.float64,
    )
    assert batch.targets is not None
    objects = batch.targets.boxes[0]
    generator = torch.Generator().manual_seed(0)
    jitter = torch.randn(1, 60, 4, generator=generator, dtype=torch.float64) * 8
    boxes = clip(objects[torch.arange(60) % 2] + jitter, batch.windows)
    boxes[0, -1] = torch.tensor([126.0, 1, 128, 2])  # which the image's edge may cut to nothing
    features = [
        torch.randn(1, 16, 128 // s, 128 // s, dtype=torch.float64).requires_grad_()
        for s in (4, 8, 16, 32, 64)
    ]

    def labelled(boxes: Tensor, iou: float) -> tuple[Tensor, Tensor]:
        best, index = torchvision.ops.box_iou(objects, boxes[0]).max(0)
        assert batch.targets is not None
        return batch.targets.labels[0, index] * (best >= iou), index

    labels, index = labelled(boxes, 0.5)
    rois = SampledRoIs(
        boxes=boxes,
        labels=labels[None],
        matched_gt=index[None],
        valid=torch.ones(1, 60, dtype=torch.bool),
        most_positive=60,
    )
    losses = cascade.loss(features, rois, batch.targets, batch.windows)
    assert len(losses) == 6

    numbers, total = [], torch.zeros((), dtype=torch.float64)
    for stage, iou in enumerate((0.5, 0.6, 0.7)):
        branch, weights = cascade.branches[stage], [w * (stage + 1) for w in (10.0, 10, 5, 5)]
        labels, index = labelled(boxes, iou)
        full = ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)[0]
        pooled = cascade.roi_features.pooler(features, boxes[0], torch.zeros(60, dtype=torch.int64))
        logits, deltas = branch(pooled, 1)
        loss = F.cross_entropy(logits[0, full], labels[full])
        assert (losses[f"loss_classifier_stage{stage + 1}"] - loss).abs() < 1e-9
        total = total + loss
        positive = (labels > 0) & full
        wanted = encode(objects[index[positive]], boxes[0, positive], weights)
        loss = (deltas[0, positive, 0] - wanted).abs().sum() / full.sum()
        assert (losses[f"loss_box_reg_stage{stage + 1}"] - loss).abs() < 1e-9
        total = total + loss
        numbers.append(int(positive.sum()))
        boxes = clip(decode(deltas[:, :, 0].detach(), boxes, weights), batch.windows)
    assert numbers[0] > 20 and len(set(numbers)) > 1
    # The stages share the features, which get a third of each one's gradient.
    ours = torch.autograd.grad(sum(losses.values()), features[0], retain_graph=True)  # type: ignore[arg-type]
    theirs = torch.autograd.grad(total, features[0])
    torch.testing.assert_close(ours[0], theirs[0] / 3, rtol=0, atol=1e-12)


def test_argmax_selector_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(2, 80, 4, generator=generator).double() * 2).softmax(-1)
    boxes = random_boxes(2, 80, seed=1)[:, :, None].expand(-1, -1, 3, -1) + torch.rand(2, 80, 3, 4)
    valid = torch.rand(2, 80, generator=generator) < 0.8
    found = ArgmaxSelector(min_score=0.4, nms_iou=0.3, num_detections=10)(scores, boxes, valid)
    for image in range(2):
        best, label = scores[image].max(1)
        rows = [
            (best[i].item(), int(label[i]), boxes[image, i, label[i] - 1].round())
            for i in range(80)
            if valid[image, i] and label[i] > 0 and best[i] >= 0.4
        ]
        kept: list[tuple[float, int, Tensor]] = []
        for row in sorted(rows, key=lambda row: -row[0]):
            same = [other[2] for other in kept if other[1] == row[1]]
            if not same or torchvision.ops.box_iou(row[2][None], torch.stack(same)).max() <= 0.3:
                kept.append(row)
        assert len(kept) > 10
        for place, (score, label_, box) in enumerate(kept[:10]):
            assert found.scores[image, place] == score and found.labels[image, place] == label_
            assert torch.equal(found.boxes[image, place], box)


def test_one_box_for_all_classes_is_every_classes_box() -> None:
    scores, boxes = torch.rand(1, 20, 4), random_boxes(1, 20).float()[:, :, None]
    valid = torch.ones(1, 20, dtype=torch.bool)
    selector = DetectionSelector(min_score=0.3, nms_iou=0.5, num_detections=30, min_side=0.0)
    shared = selector(scores, boxes, valid)
    own = selector(scores, boxes.expand(-1, -1, 3, -1), valid)
    assert shared.labels.any()
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(shared, name), getattr(own, name))


def test_values_that_are_not_finite_are_no_detections() -> None:
    scores = torch.full((1, 5, 3), 0.3)
    boxes = torch.full((1, 5, 1, 4), torch.nan)
    found = DetectionSelector(min_score=0.05, nms_iou=0.5, num_detections=4, min_side=0.0)(
        scores, boxes, torch.ones(1, 5, dtype=torch.bool)
    )
    assert not found.labels.any() and not found.boxes.any()
