import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from mrcnn_lightning.models.heads.poolers import CropAndResize, RoIAlign, RoIPool
from mrcnn_lightning.ops.roi_align import assign_levels, crop_and_resize

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
            aligned=False,
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
        strides=STRIDES,
        output_size=7,
        sampling_ratio=2,
        aligned=False,
        canonical_size=224,
        canonical_level=4,
    )
    pooled = pooler(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert pooled.shape == (0, 4, 7, 7)
    pooled.sum().backward()
    assert features[0].grad is not None and not features[0].grad.any()


def test_levels_follow_the_papers_equation() -> None:
    sides = torch.tensor([10.0, 111.9, 112, 223, 224, 447, 448, 2000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    options = {"canonical_size": 224, "canonical_level": 4, "levels": range(2, 6)}
    levels = assign_levels(boxes, rounded=False, **options)
    assert (levels + 2).tolist() == [2, 2, 3, 3, 4, 4, 5, 5]
    levels = assign_levels(boxes, rounded=True, **options)
    assert (levels + 2).tolist() == [2, 3, 3, 4, 4, 5, 5, 5]
    halfway = 224 * 2**-0.5
    for side, level in ((halfway * 0.999, 3), (halfway * 1.001, 4)):
        box = torch.tensor([[0, 0, side, side]])
        assert assign_levels(box, rounded=True, **options) + 2 == level


def test_a_pyramid_that_skips_a_level_pools_from_the_next_coarser_one() -> None:
    strides = [4, 16, 32]
    sides = torch.tensor([56.0, 111, 112, 223, 224, 447, 448, 900])
    boxes = torch.stack([sides * 0 + 8, sides * 0 + 4, sides + 8, sides + 4], dim=1)
    features = [torch.randn(1, 2, 960 // stride, 960 // stride) for stride in strides]
    pooler = RoIAlign(
        strides=strides,
        output_size=7,
        sampling_ratio=2,
        aligned=False,
        canonical_size=224,
        canonical_level=4,
    )
    pooled = pooler(features, boxes, torch.zeros(8, dtype=torch.int64))
    for box, level, found in zip(boxes, [0, 0, 1, 1, 1, 1, 2, 2], pooled, strict=True):
        expected = torchvision.ops.roi_align(
            features[level], [box[None]], 7, 1 / strides[level], sampling_ratio=2
        )
        assert (found - expected[0]).abs().max() < 1e-4


def test_boxes_that_are_not_finite_pool_from_somewhere() -> None:
    """A run that diverges is ended by its loss, not by an index of -2147483648."""
    features = [torch.randn(1, 4, 32 // s, 32 // s, requires_grad=True) for s in (1, 2, 4, 8)]
    boxes = torch.tensor(
        [[3.0, 4, 90, 70], [torch.nan] * 4, [0, 0, torch.inf, 9], [-torch.inf] * 4]
    )
    index = torch.zeros(4, dtype=torch.int64)
    for pooler in (
        RoIAlign(
            strides=STRIDES,
            output_size=7,
            sampling_ratio=2,
            aligned=False,
            canonical_size=224,
            canonical_level=4,
        ),
        CropAndResize(strides=STRIDES, output_size=7, canonical_size=224, canonical_level=4),
    ):
        pooled = pooler(features, boxes, index)
        assert pooled[0].isfinite().all()
        assert torch.equal(pooled[:1], pooler(features, boxes[:1], index[:1]))
        pooled.sum().backward()


def test_half_precision_features_are_summed_in_float32() -> None:
    features = [torch.randn(1, 4, 32 // s, 32 // s) for s in (1, 2, 4, 8)]
    pooler = RoIAlign(
        strides=STRIDES,
        output_size=7,
        sampling_ratio=2,
        aligned=False,
        canonical_size=224,
        canonical_level=4,
    )
    boxes, index = torch.tensor([[3.0, 4, 90, 70]]), torch.tensor([0])
    pooled = pooler([feature.bfloat16() for feature in features], boxes, index)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, pooler(features, boxes, index), rtol=0, atol=0.02)


def pyramid(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, 5, IMAGE[0] // s, IMAGE[1] // s, generator=generator, dtype=torch.float64)
        for s in STRIDES
    ]


def direct_roi_align(feature: Tensor, box: Tensor, bins: int, ratio: int, aligned: bool) -> Tensor:
    """The mean of bilinear samples in each bin, from the definition, point by point: (C, P, P)."""
    height, width = feature.shape[1:]
    x1, y1, x2, y2 = (box - (0.5 if aligned else 0)).tolist()
    sides = [max(side, 0 if aligned else 1) for side in (x2 - x1, y2 - y1)]
    pooled = torch.zeros(len(feature), bins, bins, dtype=feature.dtype)
    counts = [ratio or -int(-side // bins) for side in sides]
    for row in range(bins):
        for column in range(bins):
            total = torch.zeros(len(feature), dtype=feature.dtype)
            for down in range(counts[1]):
                for right in range(counts[0]):
                    y = y1 + (row + (down + 0.5) / counts[1]) * sides[1] / bins
                    x = x1 + (column + (right + 0.5) / counts[0]) * sides[0] / bins
                    if not (-1 <= y <= height and -1 <= x <= width):
                        continue
                    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
                    top, left = int(y), int(x)
                    bottom, far = min(top + 1, height - 1), min(left + 1, width - 1)
                    total += (1 - y + top) * (1 - x + left) * feature[:, top, left]
                    total += (1 - y + top) * (x - left) * feature[:, top, far]
                    total += (y - top) * (1 - x + left) * feature[:, bottom, left]
                    total += (y - top) * (x - left) * feature[:, bottom, far]
            pooled[:, row, column] = total / max(counts[0] * counts[1], 1)
    return pooled


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_is_its_definition(ratio: int, aligned: bool) -> None:
    features, boxes = pyramid(), rois()[:24]
    image_index = torch.arange(24) // 12
    pooler = RoIAlign(
        strides=STRIDES,
        output_size=3,
        sampling_ratio=ratio,
        aligned=aligned,
        canonical_size=56,
        canonical_level=4,
    )
    pooled = pooler(features, boxes, image_index)
    options = {"canonical_size": 56, "canonical_level": 4, "levels": range(2, 6)}
    levels = assign_levels(boxes, rounded=False, **options)
    assert len(levels.unique()) == 4
    for number, level in enumerate(levels.tolist()):
        feature = features[level][image_index[number]]
        expected = direct_roi_align(feature, boxes[number] / STRIDES[level], 3, ratio, aligned)
        torch.testing.assert_close(pooled[number], expected, rtol=0, atol=1e-12)


def test_aligned_roi_align_is_the_operators_with_its_gradient() -> None:
    for ratio in (0, 2):
        features = [feature.requires_grad_() for feature in pyramid()[2:3]]
        image_index = torch.arange(60) // 30
        pooler = RoIAlign(
            strides=[16],
            output_size=7,
            sampling_ratio=ratio,
            aligned=True,
            canonical_size=224,
            canonical_level=4,
        )
        pooled = pooler(features, rois(), image_index)
        numbered = torch.cat([image_index[:, None].double(), rois()], dim=1)
        expected = torchvision.ops.roi_align(features[0], numbered, 7, 1 / 16, ratio, aligned=True)
        torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)
        gradient, wanted = (
            torch.autograd.grad(result.square().sum(), features)[0] for result in (pooled, expected)
        )
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-10)


def test_crop_and_resize_is_grid_sample_with_zeros_outside() -> None:
    """Boxes that leave the image included, of which the samples outside [0, n - 1] are zero."""
    features, boxes = [feature.requires_grad_() for feature in pyramid()], rois()
    boxes[0] = torch.tensor([5.0, 6, 7, 9])
    image_index = torch.arange(60) // 30
    for size in (7, 14):
        pooler = CropAndResize(
            strides=STRIDES, output_size=size, canonical_size=56, canonical_level=4
        )
        pooled = pooler(features, boxes, image_index)
        options = {"canonical_size": 56, "canonical_level": 4, "levels": range(2, 6)}
        levels = assign_levels(boxes, rounded=True, **options)
        assert len(levels.unique()) == 4
        expected, outside = [], 0
        for number, level in enumerate(levels.tolist()):
            x1, y1, x2, y2 = boxes[number].tolist()
            steps = torch.arange(size, dtype=torch.float64) / (size - 1)
            # In image sides: 0 is the first cell and 1 the last, which grid_sample calls -1 and 1.
            x = (x1 + steps * (x2 - x1)) / IMAGE[1]
            y = (y1 + steps * (y2 - y1)) / IMAGE[0]
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1) * 2 - 1
            feature = features[level][image_index[number], None]
            sampled = F.grid_sample(feature, grid[None], align_corners=True)[0]
            inside = ((grid >= -1) & (grid <= 1)).all(-1)
            outside += int((~inside).sum())
            expected.append(sampled * inside)
        assert outside > 100
        torch.testing.assert_close(pooled, torch.stack(expected), rtol=0, atol=1e-12)
        gradients = torch.autograd.grad(pooled.square().sum(), features)
        wanted = torch.autograd.grad(torch.stack(expected).square().sum(), features)
        for gradient, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_box_that_ends_where_the_image_does_has_its_last_samples(dtype: torch.dtype) -> None:
    """Rounding would put some of these on a cell 31.000002, which is off the map and zero."""
    starts = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=dtype) * 900
    ends = torch.full_like(starts, 1024)
    boxes = torch.stack([starts, starts, ends, ends], dim=1)
    feature = torch.ones(1, 1, 32, 32, dtype=dtype)
    index = torch.zeros(2000, dtype=torch.int64)
    for size in (7, 14):
        pooled = crop_and_resize([feature], [32], boxes, index, index, output_size=size)
        torch.testing.assert_close(pooled, torch.ones_like(pooled))
        beyond = crop_and_resize([feature], [32], boxes + 1, index, index, output_size=size)
        assert not beyond[:, :, -1].any() and not beyond[..., -1].any()


def test_roi_pool_is_the_largest_value_of_each_bin() -> None:
    feature = pyramid()[2]
    box = torch.tensor([[32.0, 16, 32 + 16 * 5, 16 + 16 * 8]], dtype=torch.float64)
    pooled = RoIPool(strides=[16], output_size=3)([feature], box, torch.tensor([1]))
    bins = feature[1, :, 1:10, 2:8].unflatten(1, (3, 3)).unflatten(3, (3, 2))
    torch.testing.assert_close(pooled[0], bins.amax(dim=(2, 4)))
    with pytest.raises(ValueError, match="RoIPool cuts from one level, the neck gives 4"):
        RoIPool(strides=STRIDES, output_size=7)
