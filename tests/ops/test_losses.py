"""Values are compared with torchvision's in tests/models/test_torchvision_parity.py."""

import torch

from mrcnn_lightning.ops.losses import box_losses, mask_loss, rpn_losses


def test_without_anything_to_learn_from_losses_are_zero_and_connected() -> None:
    logits, deltas = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, 4, requires_grad=True)
    nothing = torch.zeros(2, 8, dtype=torch.bool)
    losses = rpn_losses(logits, deltas, torch.full((2, 8, 4), torch.nan), nothing, nothing)
    class_logits = torch.randn(2, 8, 4, requires_grad=True)
    class_deltas = torch.randn(2, 8, 3, 4, requires_grad=True)
    labels = torch.zeros(2, 8, dtype=torch.int64)
    losses |= box_losses(class_logits, class_deltas, labels, torch.zeros(2, 8, 4), nothing)
    mask_logits = torch.randn(0, 28, 28, requires_grad=True)
    losses |= mask_loss(mask_logits, torch.zeros(0, 28, 28))
    assert all(loss == 0 for loss in losses.values()) and len(losses) == 5
    torch.stack(list(losses.values())).sum().backward()
    for tensor in (logits, class_logits, class_deltas, mask_logits):
        assert tensor.grad is not None and not tensor.grad.any()


def test_unused_places_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 6, 4, generator=generator)
    deltas, targets = torch.randn(1, 6, 3, 4), torch.randn(1, 6, 4)
    labels = torch.tensor([[2, 1, 0, 0, 0, 0]])
    valid = torch.tensor([[True, True, True, False, False, False]])
    padded = box_losses(logits, deltas, labels, targets, valid)
    short = box_losses(logits[:, :3], deltas[:, :3], labels[:, :3], targets[:, :3], valid[:, :3])
    for name, loss in padded.items():
        torch.testing.assert_close(loss, short[name])


def test_half_precision_is_summed_in_float32() -> None:
    losses = mask_loss(torch.zeros(3, 28, 28, dtype=torch.bfloat16), torch.ones(3, 28, 28))
    assert losses["loss_mask"].dtype == torch.float32
    torch.testing.assert_close(losses["loss_mask"], torch.tensor(2.0).log())
