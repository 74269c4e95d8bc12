import torch
from torchvision.ops import MultiScaleRoIAlign

from mrcnn_lightning.models.poolers import RoIAlign
from mrcnn_lightning.ops.roi_align import assign_levels

STRIDES = (4, 8, 16, 32)
IMAGE = (192, 256)


def rois() -> torch.Tensor:
    """Boxes of all sizes, some of them partly or wholly outside the image, one empty."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(60, 2, generator=generator, dtype=torch.float64) * 300 - 20
    sides = torch.rand(60, 2, generator=generator, dtype=torch.float64) ** 3 * 250
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    boxes[0] = 0
    boxes[1] = torch.tensor([0.0, 0, 256, 192])
    boxes[2] = torch.tensor([250.0, 188, 400, 300])
    return boxes


def test_roi_align_is_torchvisions_with_its_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    features = [
        torch.randn(
            2, 5, IMAGE[0] // s, IMAGE[1] // s, generator=generator, dtype=torch.float64
        ).requires_grad_()
        for s in STRIDES
    ]
    boxes = rois()
    image_index = torch.arange(60) // 30
    for size, ratio in ((7, 2), (14, 2), (3, 1)):
        pooler = RoIAlign(
            strides=STRIDES,
            output_size=size,
            sampling_ratio=ratio,
            canonical_size=224,
            canonical_level=4,
        )
        peer = MultiScaleRoIAlign(["0", "1", "2", "3"], size, ratio)
        pooled = pooler(features, boxes, image_index)
        named = {str(level): feature for level, feature in enumerate(features)}
        expected = peer(named, list(boxes.split(30)), [IMAGE, IMAGE])
        torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
        weight = torch.randn(pooled.shape, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad((pooled * weight).sum(), features)
        wanted = torch.autograd.grad((expected * weight).sum(), features)
        for gradient, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, want, rtol=0, atol=1e-11)


def test_no_rois_give_no_features_and_a_zero_gradient() -> None:
    features = [torch.randn(1, 4, 8 // s, 8 // s, requires_grad=True) for s in (1, 2, 4, 8)]
    pooler = RoIAlign(
        strides=STRIDES, output_size=7, sampling_ratio=2, canonical_size=224, canonical_level=4
    )
    pooled = pooler(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, 4, 7, 7)
    pooled.sum().backward()
    assert features[0].grad is not None and not features[0].grad.any()


def test_levels_follow_the_papers_equation() -> None:
    sides = torch.tensor([10.0, 111.9, 112, 223, 224, 447, 448, 2000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    levels = assign_levels(boxes, canonical_size=224, canonical_level=4, levels=range(2, 6))
    assert (levels + 2).tolist() == [2, 2, 3, 3, 4, 4, 5, 5]


def test_half_precision_features_are_summed_in_float32() -> None:
    features = [torch.randn(1, 4, 32 // s, 32 // s) for s in (1, 2, 4, 8)]
    pooler = RoIAlign(
        strides=STRIDES, output_size=7, sampling_ratio=2, canonical_size=224, canonical_level=4
    )
    boxes, index = torch.tensor([[3.0, 4, 90, 70]]), torch.tensor([0])
    pooled = pooler([feature.bfloat16() for feature in features], boxes, index)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, pooler(features, boxes, index), rtol=0, atol=0.02)
