"""Random sizes and large-scale jitter against Detectron2's definitions, written out with NumPy."""

import hydra
import numpy as np
import pycocotools.mask
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.transforms import v2

from mrcnn_lightning.data.annotations import Objects
from mrcnn_lightning.data.augmentation import (
    RandomCropAroundObject,
    RandomScale,
    RandomShorterSide,
    RandomSquare,
)
from mrcnn_lightning.data.points import Points
from mrcnn_lightning.data.sizing import shorter_side_rounded
from mrcnn_lightning.data.transforms import ImageTargets, compose_transforms
from tests.conftest import compose
from tests.data.moving import transform_objects


def lines(height: int, width: int) -> Tensor:
    """An image whose first channel counts rows and whose second counts columns."""
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    return torch.stack([rows, columns, torch.full_like(rows, 255)])


def corners(height: int, width: int) -> Points:
    points = torch.tensor([[0.0, 0], [width, height], [7, 5]])
    return Points(points, canvas_size=(height, width))


@pytest.mark.parametrize("size", [(480, 640), (427, 640), (333, 500), (640, 425), (100, 1000)])
def test_sizes_are_rounded(size: tuple[int, int]) -> None:
    """ResizeShortestEdge and ResizeScale; torchvision's cut off what is left of a pixel."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for seed in range(8):
        torch.manual_seed(seed)
        shorter = int(torch.randint(6, ())) * 32 + 640
        torch.manual_seed(seed)
        move = RandomShorterSide(
            rule=shorter_side_rounded, min_size=[640, 672, 704, 736, 768, 800], max_size=1333
        )
        moved, points = move(image, corners(*size))
        scale = min(shorter / min(size), 1333 / max(size))
        assert moved.shape[1:] == tuple(int(side * scale + 0.5) for side in size)
        assert points[1].tolist() == pytest.approx([moved.shape[2], moved.shape[1]])

        torch.manual_seed(seed)
        drawn = 0.1 + 1.9 * torch.rand(()).item()
        torch.manual_seed(seed)
        moved, points = RandomScale(side=256, scale_range=[0.1, 2.0])(image, corners(*size))
        factor = np.minimum(256 * drawn / size[0], 256 * drawn / size[1])
        assert moved.shape[1:] == tuple(np.round(np.multiply(size, factor)).astype(int))
        assert points[1].tolist() == pytest.approx([moved.shape[2], moved.shape[1]])


def test_one_size_and_none() -> None:
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    move = RandomShorterSide(rule=shorter_side_rounded, min_size=96, max_size=1333)
    assert move(image).shape == (3, 96, 128)
    with pytest.raises(ValueError, match="min_size=.. has no shorter side"):
        RandomShorterSide(rule=shorter_side_rounded, min_size=[], max_size=1333)


@pytest.mark.parametrize("size", [(80, 100), (40, 100), (80, 30), (20, 30), (64, 64)])
def test_squares_have_one_random_number_and_are_padded_right_and_below(
    size: tuple[int, int],
) -> None:
    image = lines(*size).to(torch.uint8)
    for seed in range(8):
        torch.manual_seed(seed)
        most = np.maximum(np.subtract(size, (64, 64)), 0)
        top, left = np.round(np.multiply(most, torch.rand(()).item())).astype(int)
        torch.manual_seed(seed)
        square, points = RandomSquare(side=64, fill=128)(image, corners(*size))
        expected = np.full((3, 64, 64), 128, dtype=np.uint8)
        kept = image.numpy()[:, top : top + 64, left : left + 64]
        expected[:, : kept.shape[1], : kept.shape[2]] = kept
        assert np.array_equal(square.numpy(), expected)
        assert points.tolist() == [[x - left, y - top] for x, y in corners(*size).tolist()]
        assert points.canvas_size == (64, 64)


# Polygons, and the bounds of what shapely 2.2 leaves of them in an image of 60 x 80, as fvcore's
# CropTransform does: inside, a U and a comb whose middles are outside, over a corner, over
# everything, beside, on the image's own lines, and two that touch it from outside.
CUT = [
    ([[10.25, 8.5], [30.5, 9.25], [20.0, 31.125]], [10.25, 8.5, 30.5, 31.125]),
    (
        [[-30, 5], [20, 5], [20, 15], [-20, 15], [-20, 40], [9, 40], [9, 50], [-30, 50]],
        [0, 5, 20, 50],
    ),
    ([[70, 10], [90, 10], [90, -9], [75, -9], [75, 3], [70, 3]], [70, 0, 80, 10]),
    ([[70.0, 50], [100, 50], [100, 90], [70, 90]], [70, 50, 80, 60]),
    ([[-200, -1], [50, -300], [400, 500], [-300, 500]], [0, 0, 80, 60]),
    ([[81, 5], [99, 5], [99, 55]], [0, 0, 0, 0]),
    ([[0, 0], [80, 0], [80, 60], [0, 60]], [0, 0, 80, 60]),
    ([[-5, 0], [40, -9], [85, 0], [85, 60], [-5, 60]], [0, 0, 80, 60]),
    ([[80, 10], [95, 10], [95, 30], [80, 30]], [0, 0, 0, 0]),
    ([[20, -7], [30, 0], [10, 0]], [0, 0, 0, 0]),
    ([[60.0, -20], [100, 20], [60, 60], [20, 20]], [20, 0, 80, 60]),
]


def boxes_of(polygons: list[list[Tensor]], size: tuple[int, int]) -> ImageTargets:
    num = len(polygons)
    objects = Objects(
        torch.tensor([[0.0, 0, 1, 1]]).repeat(num, 1),  # wrong: they must not matter
        torch.arange(1, num + 1),
        torch.zeros(num, dtype=torch.bool),
        polygons,
    )
    image = torch.zeros(3, *size, dtype=torch.uint8)
    still = compose_transforms([])
    _, targets = transform_objects(image, objects, still, mini_mask_size=28, boxes_from="outlines")
    return targets


def test_boxes_of_outlines_are_the_bounds_of_what_is_in_the_image() -> None:
    targets = boxes_of([[torch.tensor(polygon).float()] for polygon, _ in CUT], (60, 80))
    boxes = [box for _, box in CUT if box != [0, 0, 0, 0]]
    assert targets.labels.tolist() == [n for n, (_, box) in enumerate(CUT, 1) if any(box)]
    torch.testing.assert_close(targets.boxes, torch.tensor(boxes).float(), rtol=0, atol=1e-4)
    together = boxes_of(
        [[torch.tensor(polygon).float() for polygon, _ in CUT[:1] + CUT[3:4]]], (60, 80)
    )
    assert together.boxes.tolist() == [[10.25, 8.5, 80, 60]]


def test_boxes_of_outlines_are_those_of_fine_masks() -> None:
    """Random polygons, many over the image's side, drawn by pycocotools with 32 cells a pixel."""
    generator, fine = torch.Generator().manual_seed(0), 32
    polygons, expected = [], []
    for _ in range(60):
        angles = torch.arange(12) * (2 * torch.pi / 12)
        radii = 8 + torch.rand(12, generator=generator) * 8  # no spike finer than a cell
        center = torch.rand(2, generator=generator) * 40
        polygon = center + radii[:, None] * torch.stack([angles.cos(), angles.sin()], dim=1)
        cells = (polygon * fine).flatten().tolist()
        rles = pycocotools.mask.frPyObjects([cells], 40 * fine, 40 * fine)
        x, y, width, height = pycocotools.mask.toBbox(rles)[0] / fine
        polygons.append([polygon])
        expected.append([x, y, x + width, y + height])
    ours = boxes_of(polygons, (40, 40)).boxes
    assert ours.shape == (60, 4)
    torch.testing.assert_close(ours, torch.tensor(expected).float(), rtol=0, atol=2.5 / fine)
    assert sum(0 in box or 40 in box for box in ours.tolist()) > 20


def test_the_recipe_of_large_scale_jitter() -> None:
    cfg = compose("experiment=mask_rcnn_r50_fpn_100ep_lsj")
    assert cfg.trainer.precision == "16-mixed" and cfg.data.boxes_from == "outlines"
    config = OmegaConf.to_container(cfg.data.train_transforms, resolve=True)
    move = compose_transforms(hydra.utils.instantiate(config, _convert_="all"))
    torch.manual_seed(0)
    for _ in range(4):
        image, points = move(torch.zeros(3, 48, 64, dtype=torch.uint8), corners(48, 64))
        assert image.shape == (3, 1024, 1024) and points.canvas_size == (1024, 1024)
        assert set(image.unique().tolist()) <= {0, 128}


def test_every_recipe_of_detectron2_rounds_its_sizes() -> None:
    transforms = compose("experiment=mask_rcnn_r50_fpn_1x").data.train_transforms
    assert transforms[0]._target_.endswith("RandomShorterSide")
    assert transforms[0].rule._target_.endswith("shorter_side_rounded")
    assert compose().data.train_transforms[0].rule._target_.endswith("sizing.shorter_side")


def distance_from_uniform(values: Tensor) -> float:
    """The statistic of Kolmogorov and Smirnov for numbers that should be uniform in 0 to 1."""
    values, num = values.double().sort().values, len(values)
    steps = torch.arange(num + 1) / num
    return float(torch.maximum(steps[1:] - values, values - steps[:-1]).max())


def test_scales_and_places_are_uniform() -> None:
    """Detectron2 draws both with np.random.uniform: 0.1 to 2.0, and a share of the room."""
    num, size = 1500, (480, 640)
    image = torch.zeros(1, *size, device="meta")  # whose sizes alone are computed
    scale, cut = RandomScale(side=1024, scale_range=[0.1, 2.0]), RandomSquare(side=64, fill=128)
    longer = torch.tensor([scale(image).shape[2] for _ in range(num)])
    scales = (longer / 1024 - 0.1) / 1.9
    start = Points(torch.zeros(1, 2), canvas_size=size)
    corner = torch.cat([cut(image, start)[1] for _ in range(num)])  # (num, 2)
    left, top = -corner.T
    limit = 1.95 / num**0.5  # by chance, one sample in a thousand is farther off
    for values in (scales, left / (640 - 64), top / (480 - 64)):
        assert distance_from_uniform(values) < limit
    assert (longer.min(), longer.max()) >= (102, 2000) and longer.max() <= 2048


@pytest.mark.parametrize("size", [(48, 64), (60, 30), (37, 37)])
def test_large_scale_jitter_is_detectron2s(size: tuple[int, int]) -> None:
    """ResizeScale, FixedSizeCrop and RandomFlip, written out for rectangles and a white image.

    An outline moves with its image (ResizeTransform scales by the rounded sides), and its box is
    that of what the crop leaves.
    """
    config = OmegaConf.to_container(compose("data=coco_lsj").data.train_transforms, resolve=True)
    move = compose_transforms(hydra.utils.instantiate(config, _convert_="all"))
    (h, w), boxes = size, np.array([[2.5, 3, 17, 20.25], [0, 0, 9, 9], [20, 25, 30, 37]])
    corners = [[0, 1], [2, 1], [2, 3], [0, 3]]
    polygons = [[torch.tensor(box[corners]).float()] for box in boxes]
    objects = Objects(
        torch.tensor(boxes).float(), torch.arange(1, 4), torch.zeros(3, dtype=torch.bool), polygons
    )
    image = torch.full((3, h, w), 255, dtype=torch.uint8)
    for seed in range(6):
        torch.manual_seed(seed)
        drawn, place, flip = (float(torch.rand(())) for _ in range(3))
        factor = 1024 * (0.1 + 1.9 * drawn) / max(size)
        new_h, new_w = int(np.round(h * factor)), int(np.round(w * factor))
        top, left = (int(np.round(max(side - 1024, 0) * place)) for side in (new_h, new_w))
        pixels = np.full((1024, 1024), 128)
        pixels[: new_h - top, : new_w - left] = 255
        expected = boxes * np.tile([new_w / w, new_h / h], 2) - [left, top, left, top]
        expected = expected.clip(0, 1024)
        if flip < 0.5:
            pixels, expected = (
                pixels[:, ::-1],
                np.abs([1024, 0, 1024, 0] - expected[:, [2, 1, 0, 3]]),
            )
        kept = (expected[:, 2:] > expected[:, :2]).all(axis=1)
        torch.manual_seed(seed)
        ours, targets = transform_objects(
            image, objects, move, mini_mask_size=28, boxes_from="outlines"
        )
        assert np.array_equal(ours, np.tile(pixels, (3, 1, 1)))
        assert targets.labels.tolist() == (np.flatnonzero(kept) + 1).tolist()
        np.testing.assert_allclose(targets.boxes.numpy(), expected[kept], rtol=0, atol=1e-3)


def test_two_flips_are_none() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 40, 56), generator=generator, dtype=torch.uint8)
    polygon = torch.rand(9, 2, generator=generator) * torch.tensor([50.0, 36]) + 3
    box = torch.cat([polygon.amin(0), polygon.amax(0)])[None]
    mask = np.zeros((40, 56), dtype=np.uint8, order="F")
    mask[5:20, 8:31] = mask[12:30, 20:50] = 1
    crowd = pycocotools.mask.encode(mask)["counts"]
    objects = Objects(
        torch.cat([box, torch.tensor([[8.0, 5, 50, 30]])]),
        torch.tensor([1, 2]),
        torch.tensor([False, True]),
        [[polygon], crowd],
    )
    flip = v2.RandomHorizontalFlip(1.0)
    results = [
        transform_objects(
            image, objects, compose_transforms(moves), mini_mask_size=28, boxes_from="file"
        )
        for moves in ([], [flip, flip], [flip])
    ]
    (plain, targets), (twice, back), (once, _) = results
    assert torch.equal(plain, twice) and not torch.equal(plain, once)
    torch.testing.assert_close(back.boxes, targets.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(back.mask_frames, targets.mask_frames, rtol=0, atol=1e-4)
    assert targets.masks is not None and targets.masks.flatten(1).any(1).all()
    assert torch.equal(back.masks, targets.masks)


def test_a_crop_around_an_object_keeps_the_middle_of_one() -> None:
    """Detectron2's rule: an object at random, then any place where its middle is in the crop."""
    image = lines(60, 80)
    objects = torch.tensor([[0.0, 0, 6, 4], [70, 50, 80, 60], [30, 20, 45, 50]])
    flat = objects[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 2)
    middles = (objects[:, :2] + objects[:, 2:]) / 2
    kept, starts, sizes = torch.zeros(3), set(), []
    torch.manual_seed(0)
    for _ in range(400):
        crop = RandomCropAroundObject(size_range=[0.25, 0.6])
        cut, moved = crop(image, Points(flat, canvas_size=(60, 80), num_boxes=3))
        height, width = cut.shape[1:]
        top, left = int(cut[0, 0, 0]), int(cut[1, 0, 0])
        assert torch.equal(cut, image[:, top : top + height, left : left + width])
        assert torch.equal(moved.as_subclass(Tensor), flat - torch.tensor([left, top]))
        low, high = torch.tensor([left, top]), torch.tensor([left + width, top + height])
        is_in = ((middles >= low) & (middles < high)).all(1)
        assert is_in.any()
        kept += is_in
        starts.add((top, left))
        sizes.append((height / 60, width / 80))
    assert kept.amin() > 90 and len(starts) > 200
    parts = torch.tensor(sizes)
    assert 0.24 < parts.amin() < 0.27 and 0.58 < parts.amax() < 0.61
    # Each side is drawn by itself.
    assert abs(torch.corrcoef(parts.T)[0, 1]) < 0.2


def test_a_crop_without_objects_and_one_of_no_size() -> None:
    crop = RandomCropAroundObject(size_range=[0.5, 0.5])
    tops = set()
    for _ in range(100):
        cut, _ = crop(lines(8, 8), Points(torch.zeros(0, 2), canvas_size=(8, 8)))
        assert cut.shape == (3, 4, 4)
        tops.add(int(cut[0, 0, 0]))
    assert tops == set(range(5))
    for wrong in ([0.9, 0.2], [0, 0.5], [0.5, 1.5], [0.5]):
        with pytest.raises(ValueError, match="size_range=.* is not two parts of an image"):
            RandomCropAroundObject(size_range=wrong)
