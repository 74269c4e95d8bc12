"""Values are compared with torchvision's in tests/models/test_torchvision_parity.py as well."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from mrcnn_lightning.models.box_losses import GIoULoss, SmoothL1Loss
from mrcnn_lightning.ops.boxes import encode
from mrcnn_lightning.ops.losses import classification_loss, mask_loss, objectness_loss
from tests.ops.test_boxes import random_boxes

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
BOX_LOSSES = [
    SmoothL1Loss(beta=1 / 9, mean_over="sampled"),
    SmoothL1Loss(beta=1.0, mean_over="positives"),
    SmoothL1Loss(beta=0.0, mean_over="sampled"),
    GIoULoss(mean_over="positives"),
]


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_without_anything_to_learn_from_losses_are_zero_and_connected(
    box_loss: SmoothL1Loss | GIoULoss,
) -> None:
    nothing = torch.zeros(2, 8, dtype=torch.bool)
    logits, deltas = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, 4, requires_grad=True)
    class_logits = torch.randn(2, 8, 4, requires_grad=True)
    mask_logits = torch.randn(0, 28, 28, requires_grad=True)
    boxes = torch.zeros(2, 8, 4)
    losses = [
        objectness_loss(logits, nothing, nothing),
        box_loss(deltas, boxes, boxes, weights=WEIGHTS, positive=nothing, valid=nothing),
        classification_loss(class_logits, torch.zeros(2, 8, dtype=torch.int64), nothing),
        mask_loss(mask_logits, torch.zeros(0, 28, 28), torch.ones(0, dtype=torch.bool)),
    ]
    assert not any(losses)
    torch.stack(losses).sum().backward()
    for tensor in (logits, deltas, class_logits, mask_logits):
        assert tensor.grad is not None and not tensor.grad.any()


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_unused_places_do_not_count(box_loss: SmoothL1Loss | GIoULoss) -> None:
    logits, deltas = torch.randn(1, 6, 4), torch.randn(1, 6, 4).double()
    anchors, boxes = random_boxes(1, 6), random_boxes(1, 6, seed=1)
    labels = torch.tensor([[2, 1, 0, 0, 0, 0]])
    valid = torch.tensor([[True, True, True, False, False, False]])

    def losses(end: int) -> list[torch.Tensor]:
        places = (slice(None), slice(0, end))
        return [
            classification_loss(logits[places], labels[places], valid[places]),
            box_loss(
                deltas[places],
                anchors[places],
                boxes[places],
                weights=WEIGHTS,
                positive=labels[places] > 0,
                valid=valid[places],
            ),
        ]

    for padded, short in zip(losses(6), losses(3), strict=True):
        torch.testing.assert_close(padded, short)


def test_box_losses_are_torchs_and_torchvisions() -> None:
    anchors, boxes = random_boxes(2, 5), random_boxes(2, 5, seed=1)
    deltas = (encode(boxes, anchors, WEIGHTS) + torch.randn(2, 5, 4) * 0.3).requires_grad_()
    positive = torch.tensor([[True, True, False, False, False], [True, False, False, False, False]])
    valid = torch.ones(2, 5, dtype=torch.bool)
    shared = {"weights": WEIGHTS, "positive": positive, "valid": valid}
    wanted = encode(boxes, anchors, WEIGHTS)[positive]
    for beta in (0.0, 1 / 9, 1.0):
        expected = F.smooth_l1_loss(deltas[positive], wanted, beta=beta)
        loss = SmoothL1Loss(beta=beta, mean_over="positives")(deltas, anchors, boxes, **shared)
        torch.testing.assert_close(loss, expected)
        loss = SmoothL1Loss(beta=beta, mean_over="sampled")(deltas, anchors, boxes, **shared)
        torch.testing.assert_close(loss, expected * 12 / 10)
    (l1,) = torch.autograd.grad(
        SmoothL1Loss(beta=0.0, mean_over="sampled")(deltas, anchors, boxes, **shared), deltas
    )
    assert set(l1[positive].abs().unique().tolist()) == {0.1}

    coder = torchvision.models.detection._utils.BoxCoder(WEIGHTS)
    decoded = coder.decode_single(deltas[positive], anchors[positive])
    giou = torchvision.ops.generalized_box_iou(decoded, boxes[positive]).diagonal()
    loss = GIoULoss(mean_over="positives")(deltas, anchors, boxes, **shared)
    torch.testing.assert_close(loss, (1 - giou).mean())
    loss = GIoULoss(mean_over="sampled")(deltas, anchors, boxes, **shared)
    torch.testing.assert_close(loss, (1 - giou).sum() / 10)


def test_half_precision_is_summed_in_float32() -> None:
    loss = mask_loss(
        torch.zeros(3, 28, 28, dtype=torch.bfloat16),
        torch.ones(3, 28, 28),
        torch.ones(3, dtype=torch.bool),
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
