"""The backbone's activations computed again: the same gradients in less memory."""

import copy

import pytest
import torch
from torch import nn

from tests.conftest import build_model, make_batch


@pytest.mark.parametrize(
    "backbone", [["backbone=resnet18", "backbone.norm=bn"], ["backbone=swin_t"]], ids=["bn", "swin"]
)
def test_gradients_and_statistics_are_the_same(backbone: list[str]) -> None:
    """Swin draws stochastic depth, which must be drawn again as it was."""
    model = build_model(*backbone, "backbone.trainable_stages=3").double().train()
    batch = make_batch(
        [(64, 96)] * 2, [[[8, 8, 40, 40]], [[4, 20, 60, 60]]], [[1], [2]], dtype=torch.float64
    )
    again = copy.deepcopy(model)
    again.backbone.recomputes = True
    for each in (model, again):
        torch.manual_seed(1)
        sum(each.loss(batch).values()).backward()
    for (name, first), (_, second) in zip(
        model.named_parameters(), again.named_parameters(), strict=True
    ):
        assert (first.grad is None) == (second.grad is None), name
        if first.grad is not None:
            assert second.grad is not None
            torch.testing.assert_close(first.grad, second.grad, rtol=1e-6, atol=1e-9, msg=name)
    for (name, first), (_, second) in zip(
        model.named_buffers(), again.named_buffers(), strict=True
    ):
        assert torch.equal(first, second), name
    norms = [each for each in again.modules() if isinstance(each, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 for norm in norms)


def test_it_keeps_less() -> None:
    backbone = build_model("backbone=resnet18").backbone.train()
    images = torch.rand(1, 3, 128, 128)
    kept = []
    for recomputes in (False, True):
        backbone.recomputes = recomputes
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            backbone(images)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
