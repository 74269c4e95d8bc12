import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models.norms import conv_norm


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [40, 6])  # a map that is larger than the weights, and one less
@pytest.mark.parametrize("stride", [1, 2])
def test_a_norm_in_the_weights_is_the_norm_after(
    norm: type[nn.Module], bias: bool, size: int, stride: int
) -> None:
    conv = nn.Conv2d(8, 6, 3, stride=stride, padding=1, groups=2, bias=bias).double()
    after = norm(6).double().eval()
    for value, low in (("running_mean", -1.0), ("running_var", 0.5), ("weight", -2.0)):
        nn.init.uniform_(getattr(after, value), low, 2.0)
    images = torch.randn(2, 8, size, size, dtype=torch.float64, requires_grad=True)
    expected = after(conv(images))
    found = conv_norm(conv, after, images)
    assert (found - expected).abs().max() < 1e-12
    inputs = [images, *conv.parameters(), *after.parameters()]
    weights = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        assert (ours - theirs).abs().max() < 1e-10 * theirs.abs().max()


def test_statistics_that_move_stay_where_they_are() -> None:
    conv, after = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    images = torch.randn(2, 3, 16, 16)
    found = conv_norm(conv, after, images)
    assert after.num_batches_tracked == 1 and found.mean((0, 2, 3)).abs().max() < 1e-5
