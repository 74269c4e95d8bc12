"""Shapes follow the image: against torchvision's own kernels for boxes and masks."""

from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import _color

from mrcnn_lightning.data.annotations import Objects
from mrcnn_lightning.data.points import Points
from mrcnn_lightning.data.transforms import compose_transforms
from mrcnn_lightning.ops.masks import mask_targets
from tests.data.moving import transform_objects

SIZE = (60, 80)
MOVES = [
    v2.RandomHorizontalFlip(1.0),
    v2.RandomVerticalFlip(1.0),
    v2.Resize((33, 91)),
    v2.Resize(30),
    v2.Resize([90], max_size=100),
    v2.Resize(None, max_size=100),
    v2.RandomShortestSize([30, 40, 50], max_size=60),
    v2.RandomResize(30, 90),
    v2.ScaleJitter((64, 64)),
    v2.RandomCrop((40, 50)),
    v2.RandomCrop((70, 100), pad_if_needed=True),
    v2.CenterCrop((40, 51)),
    v2.CenterCrop((41, 50)),
    v2.CenterCrop((41, 100)),
    v2.CenterCrop(70),
    v2.RandomResizedCrop((40, 40)),
    v2.Pad(7),
    v2.Pad([3, 5]),
    v2.Pad([1, 2, 3, 4]),
    v2.RandomZoomOut(p=1.0),
    v2.RandomApply([v2.RandomHorizontalFlip(1.0)], p=1.0),
    v2.Compose([v2.RandomHorizontalFlip(1.0), v2.Resize(47), v2.RandomCrop((40, 50))]),
]
TURNS = [
    v2.RandomRotation((25, 25)),
    v2.RandomRotation((-140, -140), expand=True),
    v2.RandomRotation((30, 30), center=[35, 28]),
    v2.RandomAffine((15, 15), translate=(0.1, 0.1), scale=(0.8, 1.2), shear=(5, 9, -12, -3)),
    v2.RandomAffine(0, shear=20, center=[10, 50]),
    *(v2.RandomRotation((k, k), expand=True) for k in (90, 180, 270)),
]


@pytest.mark.parametrize("move", TURNS, ids=str)
def test_points_turn_as_pixels_do(move: v2.Transform) -> None:
    """A spot of the image, and the point at its middle."""
    for x, y in ((40, 30), (14, 40), (62, 17)):
        image = torch.zeros(1, *SIZE)
        image[0, y - 2 : y + 2, x - 2 : x + 2] = 1
        torch.manual_seed(0)
        moved, point = compose_transforms([move])(
            tv_tensors.Image(image), Points(torch.tensor([[float(x), y]]), canvas_size=SIZE)
        )
        assert point.canvas_size == tuple(moved.shape[1:])
        spot = torch.nonzero(moved[0]).flip(1) + 0.5
        torch.testing.assert_close(
            point.as_subclass(torch.Tensor)[0], spot.mean(0), atol=0.5, rtol=0
        )


@pytest.mark.parametrize("move", MOVES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_points_move_as_torchvisions_boxes(move: v2.Transform, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(20, 2, 2, generator=generator) * torch.tensor([80.0, 60])).sort(1).values
    boxes = tv_tensors.BoundingBoxes(corners.view(20, 4), format="XYXY", canvas_size=SIZE)
    image = tv_tensors.Image(torch.zeros(3, *SIZE, dtype=torch.uint8))
    torch.manual_seed(seed)
    moved_image, moved = compose_transforms([move])(
        image, Points(corners.view(-1, 2), canvas_size=SIZE)
    )
    torch.manual_seed(seed)
    _, expected = move(image, boxes)
    assert isinstance(moved, Points) and moved.canvas_size == tuple(moved_image.shape[1:])
    assert moved.canvas_size == expected.canvas_size
    height, width = moved.canvas_size
    ends = moved.as_subclass(torch.Tensor).view(20, 2, 2)
    got = torch.cat([ends.amin(1), ends.amax(1)], dim=1)
    limit = torch.tensor([width, height] * 2)
    torch.testing.assert_close(
        got.clamp(torch.zeros(4), limit),
        expected.as_subclass(torch.Tensor).clamp(torch.zeros(4), limit),
        rtol=1e-5,
        atol=1e-3,
    )


@pytest.mark.parametrize("height", range(50, 71))
@pytest.mark.parametrize("width", [77, 78, 79, 81, 82, 83, 84])
def test_points_move_as_pixels_in_a_centre_crop(height: int, width: int) -> None:
    """torchvision's own kernel for boxes may be a pixel off its kernel for images."""
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    image[:, 30, 40] = 255
    points = Points(torch.tensor([[40.5, 30.5]]), canvas_size=SIZE)
    moved, (point,) = compose_transforms([v2.CenterCrop((height, width))])(
        tv_tensors.Image(image), points
    )
    row, column = torch.nonzero(moved[0])[0].tolist()
    assert point.tolist() == [column + 0.5, row + 0.5]


COLORS = [
    v2.ColorJitter(0.5, 0.5, 0.5, 0.2),
    v2.RandomPhotometricDistort(p=1.0),
    v2.RandomGrayscale(1.0),
    v2.Grayscale(3),
    v2.RGB(),
    v2.RandomChannelPermutation(),
    v2.RandomAutocontrast(1.0),
    v2.RandomEqualize(1.0),
    v2.RandomInvert(1.0),
    v2.RandomPosterize(3, 1.0),
    v2.RandomSolarize(100, 1.0),
    v2.RandomAdjustSharpness(2, 1.0),
    v2.GaussianBlur(3),
    v2.RandomErasing(1.0),
    v2.RandomApply([v2.RandomInvert(1.0)], p=1.0),
    v2.RandomChoice([v2.RandomInvert(1.0)]),
]


@pytest.mark.parametrize("color", COLORS, ids=lambda color: type(color).__name__)
def test_transforms_of_colour_leave_points_alone(color: v2.Transform) -> None:
    points = Points(torch.rand(9, 2) * 50, canvas_size=SIZE)
    image = tv_tensors.Image(torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8))
    moved_image, moved = compose_transforms([color])(image, points)
    assert torch.equal(moved.as_subclass(torch.Tensor), points.as_subclass(torch.Tensor))
    assert moved_image.shape == image.shape and moved_image.dtype == torch.uint8


def test_every_transform_of_colour_was_looked_at() -> None:
    names = {
        name
        for name, value in vars(_color).items()
        if isinstance(value, type) and value.__module__ == _color.__name__ and name[0] != "_"
    }
    assert names <= {type(color).__name__ for color in COLORS}


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomPerspective(),
        v2.ElasticTransform(),
        v2.RandomIoUCrop(),
        v2.FiveCrop(10),
        v2.Normalize([0.5] * 3, [0.5] * 3),
        v2.RandomApply([v2.RandomPerspective()]),
        v2.Compose([v2.RandomHorizontalFlip(), v2.RandomChoice([v2.ElasticTransform()])]),
        v2.AutoAugment(),
        v2.MixUp(num_classes=3),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_others_are_refused(transform: Any) -> None:
    with pytest.raises(ValueError, match="data.train_transforms has .* shapes can follow"):
        compose_transforms([transform])


def blob() -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A box and polygons in it: an L and a triangle."""
    polygons = [
        torch.tensor([[10.0, 8], [30, 8], [30, 20], [50, 20], [50, 40], [10, 40]]),
        torch.tensor([[52.0, 44], [64, 44], [58, 52.5]]),
    ]
    return torch.tensor([[10.0, 8, 64, 52.5]]), polygons


def drawn(polygons: list[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    rles = pycocotools.mask.frPyObjects([p.flatten().tolist() for p in polygons], *size)
    return torch.from_numpy(pycocotools.mask.decode(pycocotools.mask.merge(rles)))


def as_rle(mask: torch.Tensor) -> bytes:
    return pycocotools.mask.encode(np.asfortranarray(mask.numpy()))["counts"]


@pytest.mark.parametrize("kind", ["polygons", "run lengths"])
@pytest.mark.parametrize("move", [*MOVES, *TURNS], ids=str)
def test_masks_follow_as_torchvisions_do(kind: str, move: v2.Transform) -> None:
    """Targets of 28 cells from the mini-mask against those from torchvision's full-size mask."""
    boxes, polygons = blob()
    full = drawn(polygons, SIZE)
    shape: Any = polygons if kind == "polygons" else as_rle(full)
    objects = Objects(boxes, torch.tensor([1]), torch.tensor([False]), [shape])
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    torch.manual_seed(0)
    moved, targets = transform_objects(
        image, objects, compose_transforms([move]), mini_mask_size=112, boxes_from="file"
    )
    torch.manual_seed(0)
    _, expected = move(tv_tensors.Image(image), tv_tensors.Mask(full[None]))
    assert moved.shape[1:] == expected.shape[1:]
    masks, frames, box = targets.masks, targets.mask_frames, targets.boxes
    assert masks is not None and frames is not None and box is not None and len(box) == 1
    ours = mask_targets(masks, frames, box, 28) > 0.5
    canvas = torch.tensor([[0.0, 0, moved.shape[2], moved.shape[1]]])
    theirs = mask_targets(expected.as_subclass(torch.Tensor), canvas, box, 28) > 0.5
    intersection, union = (ours & theirs).sum(), (ours | theirs).sum()
    # The peer takes the nearest pixel of a small mask; a shape turned wrongly is far below 0.8.
    assert intersection / union > 0.9, intersection / union


def test_objects_that_leave_the_image_are_gone() -> None:
    boxes, polygons = blob()
    objects = Objects(
        torch.cat([boxes, torch.tensor([[70.0, 50, 78, 58]])]),
        torch.tensor([1, 2]),
        torch.tensor([False, True]),
        [polygons, as_rle(drawn([torch.tensor([[70.0, 50], [78, 50], [78, 58]])], SIZE))],
    )
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    crop = v2.Lambda(lambda part: v2.functional.crop(part, 0, 0, 45, 60))
    _, targets = transform_objects(image, objects, crop, mini_mask_size=28, boxes_from="file")
    assert targets.labels.tolist() == [1] and targets.crowd.tolist() == [False]
    assert targets.boxes.tolist() == [[10, 8, 60, 45]]
    assert targets.masks.shape == (1, 28, 28) and targets.mask_frames.shape == (1, 4)
    crop = v2.Lambda(lambda part: v2.functional.crop(part, 0, 0, 5, 5))
    _, targets = transform_objects(image, objects, crop, mini_mask_size=28, boxes_from="file")
    assert targets.boxes.shape == (0, 4) and targets.masks.shape == (0, 28, 28)


def test_a_polygon_that_a_crop_leaves_a_hair_of_stays_small() -> None:
    boxes, polygons = blob()
    objects = Objects(boxes, torch.tensor([1]), torch.tensor([False]), [polygons])

    def hair(image: Any, points: Points) -> tuple[Any, Points]:
        return image, Points(
            points.as_subclass(torch.Tensor) - torch.tensor([63.999, 0]), canvas_size=SIZE
        )

    _, targets = transform_objects(
        torch.zeros(3, *SIZE, dtype=torch.uint8),
        objects,
        hair,
        mini_mask_size=112,
        boxes_from="file",
    )
    assert targets.boxes[0, 2] - targets.boxes[0, 0] < 0.01
    frame = targets.mask_frames[0]
    assert frame[2] - frame[0] == 1


def test_an_image_without_objects_and_a_set_without_masks() -> None:
    nothing = Objects(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool), []
    )
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    flip = compose_transforms([v2.RandomHorizontalFlip(1.0)])
    _, targets = transform_objects(image, nothing, flip, mini_mask_size=28, boxes_from="file")
    assert targets.boxes.shape == (0, 4) and targets.masks.shape == (0, 28, 28)
    boxes, polygons = blob()
    objects = Objects(boxes, torch.tensor([1]), torch.tensor([False]), [polygons])
    _, targets = transform_objects(
        image, objects, compose_transforms([]), mini_mask_size=None, boxes_from="file"
    )
    assert targets.masks is None and targets.boxes.tolist() == boxes.tolist()


def test_a_crowd_without_a_segmentation_is_kept() -> None:
    objects = Objects(blob()[0], torch.tensor([1]), torch.tensor([True]), [b""])
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    _, targets = transform_objects(
        image, objects, compose_transforms([]), mini_mask_size=28, boxes_from="file"
    )
    assert targets.crowd.tolist() == [True] and targets.masks.sum() == 0


def test_an_image_that_is_no_longer_uint8_is_an_error() -> None:
    class Scale(torch.nn.Module):
        def forward(self, image: torch.Tensor, points: Points) -> tuple[torch.Tensor, Points]:
            return image / 255, points

    objects = Objects(blob()[0], torch.tensor([1]), torch.tensor([False]), [b""])
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"the image is torch.float32 with 3 channels"):
        transform_objects(
            image,
            objects,
            compose_transforms([Scale()]),
            mini_mask_size=None,
            boxes_from="file",
        )
