import numpy as np
import pycocotools.mask
import pytest
import torch

from mrcnn_lightning.results.pasting import resized_crops
from mrcnn_lightning.results.rle import decode_masks, encode_crop, encode_masks
from tests.results.test_pasting import SIZE, predicted
from tests.results.whole_masks import paste_masks


def test_run_lengths_are_pycocotools_of_the_whole_canvas() -> None:
    masks, boxes = predicted()
    canvas = paste_masks(masks, boxes, SIZE)
    rles = encode_masks(masks, boxes, SIZE, resized_crops)
    for rle, mask in zip(rles, canvas.numpy(), strict=True):
        expected = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == expected["counts"]
    assert torch.equal(decode_masks(rles, SIZE), canvas)


@pytest.mark.parametrize(
    "crop",
    [np.ones((6, 8)), np.zeros((6, 8)), np.eye(6, 8), np.ones((6, 3)), np.zeros((0, 0))],
)
def test_run_lengths_of_edge_cases(crop: np.ndarray) -> None:
    for top, left in ((0, 0), (6 - crop.shape[0], 8 - crop.shape[1])):
        canvas = np.zeros((6, 8), dtype=np.uint8)
        canvas[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        expected = pycocotools.mask.encode(np.asfortranarray(canvas))["counts"]
        assert encode_crop(crop.astype(bool), top, left, (6, 8)) == expected


def test_no_masks() -> None:
    nothing = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    assert encode_masks(*nothing, SIZE, resized_crops) == []
    assert paste_masks(*nothing, SIZE).shape == (0, *SIZE)
    assert decode_masks([], SIZE).shape == (0, *SIZE)
