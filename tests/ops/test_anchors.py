import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from mrcnn_lightning.models.rpn.anchors import Anchors


@pytest.mark.parametrize(
    ("sizes", "image"),
    [
        ([[32], [64], [128], [256], [512]], (800, 1344)),
        ([[8], [16], [32], [64], [128]], (96, 128)),
        ([[20, 25], [40, 50], [80, 100], [160, 200], [320, 400]], (224, 160)),
    ],
)
def test_anchors_are_torchvisions(sizes: list[list[int]], image: tuple[int, int]) -> None:
    ratios = [0.5, 1.0, 2.0]
    shapes = [(-(-image[0] // s), -(-image[1] // s)) for s in (4, 8, 16, 32, 64)]
    peer = AnchorGenerator(tuple(tuple(s) for s in sizes), (tuple(ratios),) * 5)
    canvas = ImageList(torch.zeros(1, 3, *image), [image])
    (expected,) = peer(canvas, [torch.zeros(1, 1, *shape) for shape in shapes])
    features = [torch.zeros(1, 1, *shape) for shape in shapes]
    ours = Anchors(sizes=sizes, aspect_ratios=ratios, offset=0.0, rounded=True)
    assert torch.equal(ours(features, [4, 8, 16, 32, 64], image), expected)


def test_anchors_that_are_not_rounded_keep_their_areas_and_the_levels_strides() -> None:
    ours = Anchors(sizes=[[32, 50]], aspect_ratios=[0.5, 2.0], offset=0.5, rounded=False)
    anchors = ours([torch.zeros(1, 1, 3, 5, dtype=torch.float64)], [64], (130, 300))
    sides = anchors[:, 2:] - anchors[:, :2]
    centers = (anchors[:, 2:] + anchors[:, :2]) / 2
    areas = torch.tensor([32.0, 50, 32, 50], dtype=torch.float64).square()
    torch.testing.assert_close(sides.prod(1), areas.repeat(15), rtol=0, atol=1e-9)
    ratios = torch.tensor([0.5, 0.5, 2, 2], dtype=torch.float64)
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], ratios.repeat(15), rtol=0, atol=1e-12)
    torch.testing.assert_close(centers[0], torch.tensor([32.0, 32], dtype=torch.float64))
    last = torch.tensor([4 * 64 + 32.0, 2 * 64 + 32], dtype=torch.float64)
    torch.testing.assert_close(centers[-1], last)
