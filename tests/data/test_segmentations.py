"""Polygons that reach far out of their image, against pycocotools where it can."""

import numpy as np
import pycocotools.mask
import pytest

from mrcnn_lightning.data.segmentations import encode_polygons, read_segmentation

SIZE = [50, 60]


def drawn(counts: bytes) -> np.ndarray:
    return pycocotools.mask.decode({"size": SIZE, "counts": counts})


def ours(*polygons: np.ndarray) -> np.ndarray:
    shape = read_segmentation([polygon.tolist() for polygon in polygons], (50, 60))
    assert isinstance(shape, list)
    return drawn(encode_polygons([np.array(polygon) for polygon in shape], SIZE)["counts"])


def test_pixels_in_the_image_are_pycocotools() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(30):
        polygon = rng.uniform(-2e5, 2e5, 8)
        (peer,) = pycocotools.mask.frPyObjects([polygon.tolist()], *SIZE)
        mine = ours(polygon)
        # An edge may pass through a pixel: its far end was rounded elsewhere.
        assert (mine != drawn(peer["counts"])).sum() <= 2
        covered.append(mine.mean())
    assert min(covered) == 0 and max(covered) == 1


@pytest.mark.parametrize("far", [1e4, 1e5, 1e9, 1e36])
def test_however_far(far: float) -> None:
    band = np.array([-far, 10, 1.5 * far, 10, 1.5 * far, 30, -far, 30])
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[10:30] = 1
    assert np.array_equal(ours(band), expected)
    outside = np.array([far, far, 2 * far, far, far, 2 * far])
    assert np.array_equal(ours(outside, band), expected)
