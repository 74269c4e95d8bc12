import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from mrcnn_lightning.ops.anchors import anchor_grid, cell_anchors


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
    cells = [cell_anchors(level, ratios) for level in sizes]
    assert torch.equal(anchor_grid(cells, shapes, image), expected)
