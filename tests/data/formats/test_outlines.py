import numpy as np
import pycocotools.mask
import pytest

from mrcnn_lightning.data.formats.image_set import LabeledObject
from mrcnn_lightning.data.formats.outlines import join, outlines, single_polygon


def drawn(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    (rle,) = pycocotools.mask.frPyObjects([points.ravel()], *size)
    return pycocotools.mask.decode(rle)


@pytest.mark.parametrize("density", [0.02, 0.5, 0.9])
def test_outlines_cover_the_same_pixels(density: float) -> None:
    """Of parts, holes in holes and pixels that touch by a corner, as pycocotools draws them."""
    for seed in range(10):
        mask = (np.random.default_rng(seed).random((13, 17)) < density).astype(np.uint8)
        np.testing.assert_array_equal(drawn(join(outlines(mask)), mask.shape), mask)
    assert outlines(np.zeros((5, 5), dtype=np.uint8)) == []


def test_polygons_that_overlap_become_their_union() -> None:
    shape = [[5.0, 5, 25, 5, 25, 25, 5, 25], [15.0, 15, 35, 15, 35, 35, 15, 35]]
    labeled = LabeledObject("a", (5, 5, 30, 30), shape)
    points = single_polygon(labeled, (40, 40))
    assert points is not None
    np.testing.assert_array_equal(drawn(points, (40, 40)), labeled.mask((40, 40)))
    assert single_polygon(LabeledObject("a", (5, 5, 30, 30)), (40, 40)) is None
