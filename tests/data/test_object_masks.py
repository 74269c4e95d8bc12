"""Masks as pixels: against pycocotools, numpy and torch."""

from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from mrcnn_lightning.data.annotations import Annotations, Objects
from mrcnn_lightning.data.object_masks import rasterize
from mrcnn_lightning.data.transforms import compose_transforms
from tests.conftest import shared
from tests.data.moving import transform_objects
from tests.data.test_transforms import as_rle, blob, drawn


def test_rasterized_polygons_are_pycocotools_of_the_enlarged_ones() -> None:
    boxes, polygons = blob()
    mask = rasterize(polygons, boxes[0], 112)
    cells = torch.tensor([112 / 54, 112 / 44.5])
    expected = drawn([(points - boxes[0, :2]) * cells for points in polygons], (112, 112))
    assert torch.equal(mask, expected) and 0.3 < mask.float().mean() < 0.9


@pytest.mark.parametrize("far", [3e3, 1e9, 1e37])
def test_polygons_that_reach_far_out_are_drawn_where_the_image_is(far: float) -> None:
    band = torch.tensor([[-far, 20], [far, 20], [far, 40], [-far, 40]])
    expected = torch.zeros(64, 64, dtype=torch.uint8)
    expected[20:40] = 1
    assert torch.equal(rasterize([band], torch.tensor([0.0, 0, 64, 64]), 64), expected)
    outside = torch.tensor([[far, far], [far + far / 9, far], [far, far + far / 9]])
    assert not rasterize([outside], torch.tensor([0.0, 0, 64, 64]), 64).any()


def bounds(mask: torch.Tensor) -> list[int]:
    """x1, y1, x2, y2 of a mask's ones, by numpy."""
    rows, columns = np.nonzero(mask.numpy())
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def star(generator: torch.Generator, height: int, width: int) -> torch.Tensor:
    """A polygon like a person's outline, which may leave the image."""
    num = int(torch.randint(3, 40, (1,), generator=generator))
    angles = torch.rand(num, generator=generator).sort().values * 2 * torch.pi
    radii = (0.2 + torch.rand(num, generator=generator)) * 0.3 * min(height, width)
    center = torch.rand(2, generator=generator) * torch.tensor([width, height])
    return center + radii[:, None] * torch.stack([angles.cos(), angles.sin()], dim=1)


def objects_of(shapes: list[Any]) -> Objects:
    num = len(shapes)
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(num, 1)  # wrong: they must not matter
    crowd = torch.zeros(num, dtype=torch.bool)
    return Objects(boxes, torch.arange(1, num + 1), crowd, shapes)


def test_boxes_of_polygons_are_those_of_their_pixels() -> None:
    """Each polygon enlarged and flipped by hand, then drawn by pycocotools."""
    generator = torch.Generator().manual_seed(0)
    shapes = [[star(generator, 60, 80) for _ in range(1 + number % 3)] for number in range(200)]
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    move = compose_transforms([v2.Resize((90, 100)), v2.RandomHorizontalFlip(1.0)])
    _, targets = transform_objects(
        image, objects_of(shapes), move, mini_mask_size=28, boxes_from="pixels"
    )
    factor = torch.tensor([100 / 80, 90 / 60])
    mirrored, origin = torch.tensor([-1.0, 1]), torch.tensor([100.0, 0])
    masks = [
        drawn([points * factor * mirrored + origin for points in polygons], (90, 100))
        for polygons in shapes
    ]
    kept = [number for number, mask in enumerate(masks) if mask.any()]
    assert len(kept) > 150
    assert targets.labels.tolist() == [number + 1 for number in kept]
    assert targets.boxes.tolist() == [bounds(masks[number]) for number in kept]
    assert torch.equal(targets.mask_frames, targets.boxes)


# From 60 x 80 to these, no new pixel's middle falls between two old ones.
@pytest.mark.parametrize("size", [(96, 112), (40, 48), (60, 80), (120, 160)])
def test_boxes_of_run_lengths_are_those_of_the_resized_mask(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    masks = [drawn([star(generator, 60, 80)], (60, 80)) for _ in range(100)]
    masks = [mask for mask in masks if mask.any()]
    move = compose_transforms([v2.Resize(size), v2.RandomVerticalFlip(1.0)])
    _, targets = transform_objects(
        torch.zeros(3, 60, 80, dtype=torch.uint8),
        objects_of([as_rle(mask) for mask in masks]),
        move,
        mini_mask_size=56,
        boxes_from="pixels",
    )
    resized = F.interpolate(torch.stack(masks)[None], size, mode="nearest-exact")[0].flip(1)
    kept = [number for number, mask in enumerate(resized) if mask.any()]
    assert targets.labels.tolist() == [number + 1 for number in kept]
    assert targets.boxes.tolist() == [bounds(resized[number]) for number in kept]
    assert torch.equal(targets.mask_frames, targets.boxes)
    cells = (np.arange(56) + 0.5) / 56
    for number, ours, (x1, y1, x2, y2) in zip(
        kept, targets.masks.numpy(), targets.boxes.tolist(), strict=True
    ):
        rows = (60 - (y1 + cells * (y2 - y1)) * 60 / size[0]).astype(int)
        columns = ((x1 + cells * (x2 - x1)) * 80 / size[1]).astype(int)
        expected = masks[number].numpy()[rows[:, None], columns]
        # Where a cell's middle is the border of two pixels, either is right.
        assert (ours != expected).mean() < 0.02


@pytest.mark.parametrize("kind", ["polygons", "run lengths"])
def test_objects_without_a_pixel_are_gone(kind: str) -> None:
    _, polygons = blob()
    far = [torch.tensor([[70.0, 50], [78, 50], [78, 58]])]
    shapes: list[Any] = [polygons, far, [torch.tensor([[5.1, 5.1], [5.2, 5.1], [5.2, 5.2]])]]
    if kind == "run lengths":
        shapes = [as_rle(drawn(shape, (60, 80))) for shape in shapes]
    crop = v2.Lambda(lambda part: v2.functional.crop(part, 0, 0, 45, 60))
    _, targets = transform_objects(
        torch.zeros(3, 60, 80, dtype=torch.uint8),
        objects_of(shapes),
        crop,
        mini_mask_size=28,
        boxes_from="pixels",
    )
    assert targets.labels.tolist() == [1]
    assert targets.boxes.tolist() == [bounds(drawn(polygons, (60, 80))[:45, :60])]
    assert targets.masks.any() and targets.masks.shape == (1, 28, 28)


def test_boxes_of_cocos_objects_are_those_of_their_pixels(tmp_path: Any) -> None:
    """Every object of a real set as it is in its file, polygons, crowds and all."""
    annotations = Annotations.load(
        shared("data/coco_tiny/annotations/instances_train2017.json"), cache_dir=tmp_path
    )
    compared = 0
    for index in range(len(annotations)):
        height, width = annotations.image_sizes[index].tolist()
        objects = annotations.objects(index)
        _, targets = transform_objects(
            torch.zeros(3, height, width, dtype=torch.uint8),
            objects,
            compose_transforms([]),
            mini_mask_size=28,
            boxes_from="pixels",
        )
        masks = [
            torch.from_numpy(pycocotools.mask.decode({"size": [height, width], "counts": shape}))
            if isinstance(shape, bytes)
            else drawn(shape, (height, width))
            for shape in objects.shapes
        ]
        assert targets.boxes.tolist() == [bounds(mask) for mask in masks if mask.any()]
        compared += len(masks)
    assert compared > 100
