"""Measures of boxes against torchvision's and against our own anchors laid out in full."""

import numpy as np
import pytest
import shapely
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from mrcnn_lightning.app.data_commands.training_size import training_size
from mrcnn_lightning.data.checking.boxes import best_anchor_iou, box_format, iou, repeats
from mrcnn_lightning.data.checking.masks import Polygons


def random_boxes(num: int, side: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    start = generator.uniform(0, side * 0.8, (num, 2))
    return np.concatenate([start, start + generator.uniform(1, side * 0.5, (num, 2))], axis=1)


def test_best_anchors_are_those_of_torchvision() -> None:
    size = training_size()
    assert size.name == "800/1333" and size.resize((480, 640)) == (800, 1066)
    boxes = random_boxes(300, 256)
    generator = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    features = [torch.zeros(1, 1, 512 // stride, 512 // stride) for stride in (4, 8, 16, 32, 64)]
    (anchors,) = generator(ImageList(torch.zeros(1, 3, 512, 512), [(512, 512)]), features)
    expected = box_iou(torch.from_numpy(boxes), anchors.double()).amax(1).numpy()
    np.testing.assert_allclose(best_anchor_iou(boxes, size.levels), expected, atol=1e-6)


def test_iou_is_that_of_torchvision() -> None:
    one, other = random_boxes(100, 50), random_boxes(200, 60)[100:]
    expected = box_iou(torch.from_numpy(one), torch.from_numpy(other)).diag().numpy()
    np.testing.assert_allclose(iou(one, other), expected)


def test_repeats_name_the_later_ones() -> None:
    images, labels = np.array([1, 1, 2, 1, 1]), np.array([0, 0, 0, 1, 0])
    boxes = np.array([[1.0, 2, 3, 4]] * 5)
    assert repeats(images, labels, boxes).tolist() == [1, 4]


@pytest.mark.parametrize("num", [0, 1, 500])
def test_boxes_of_coco_are_taken_as_they_are(num: int) -> None:
    corners = random_boxes(num, 100)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    sizes = np.full((num, 2), 140)
    assert box_format(boxes, sizes) == ("xywh", False)
    assert box_format(boxes, sizes, corners) == ("xywh", False)


def test_polygons_are_measured_as_shapely_does() -> None:
    generator = np.random.default_rng(0)
    polygons, rows = Polygons(), []
    for row in range(40):
        for _ in range(row % 3):
            rows.append((row, generator.uniform(0, 50, (generator.integers(3, 7), 2))))
            polygons.add(row, [rows[-1][1].ravel().tolist()])
    shapes = polygons.summed_up(41)
    for row in range(41):
        own = [shapely.Polygon(points) for number, points in rows if number == row]
        assert (row in shapes.crossing) == any(not each.is_valid for each in own)
        if own:
            np.testing.assert_allclose(
                shapes.extents[row],
                shapely.union_all([shapely.box(*each.bounds) for each in own]).bounds,
            )
        if own and all(each.is_valid for each in own):
            assert shapes.areas[row] == pytest.approx(sum(each.area for each in own))
