import numpy as np
import pycocotools.mask
import pytest
import torch

from mrcnn_lightning.results.pasting import Paste, resized_crops, sampled_crops
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


def test_numbers_of_any_size_are_written_as_pycocotools_writes_them() -> None:
    """A checkered image, whose run lengths are all the numbers up to some thousands."""
    generator = np.random.default_rng(0)
    for most in (15, 16, 17, 511, 512, 513, 16383, 16384, 40000):
        lengths = [most, *generator.integers(1, most + 1, 20).tolist(), most]
        values = np.arange(len(lengths)).repeat(lengths) % 2
        mask = values.astype(np.uint8).reshape(1, -1)
        expected = pycocotools.mask.encode(np.asfortranarray(mask))["counts"]
        assert encode_crop(mask.astype(bool), 0, 0, mask.shape) == expected


def generated(seed: int) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Masks of several kinds and boxes that leave the image, in float64 as detections are."""
    generator = torch.Generator().manual_seed(seed)
    cells = (1, 2, 5, 14, 28)[seed % 5]
    masks = torch.rand(30, cells, cells, generator=generator)
    if seed % 4 == 1:  # on the threshold
        masks = (masks * 4).round() / 4
    elif seed % 4 == 2:
        masks = masks.round()
    elif seed % 4 == 3:
        masks = masks.double()
    size = (1, 40, 90, 300)[seed % 3], (1, 64, 200)[seed % 2 + 1]
    corners = (torch.rand(30, 2, generator=generator).double() * 1.3 - 0.2) * max(size)
    sides = (torch.rand(30, 2, generator=generator).double() * 8 - 1.5).exp().clamp(max=400)
    boxes = torch.cat([corners, corners + sides], dim=1)
    return masks, boxes.round() if seed % 7 == 0 else boxes, size


@pytest.mark.parametrize("paste", [resized_crops, sampled_crops])
def test_run_lengths_without_pixels_are_those_of_the_pixels(paste: Paste) -> None:
    for seed in range(30):
        masks, boxes, size = generated(seed)
        crops = paste(masks, boxes, size)
        expected = [encode_crop(*crop, size) for crop in crops]
        assert encode_masks(masks, boxes, size, paste) == expected, seed
        if masks.shape[1] > 5 and seed % 4 in (0, 3):
            assert len(crops.edges(size[0])[2]) < 5  # of which pixels are looked at all the same


def test_no_masks() -> None:
    nothing = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    assert encode_masks(*nothing, SIZE, resized_crops) == []
    assert paste_masks(*nothing, SIZE).shape == (0, *SIZE)
    assert decode_masks([], SIZE).shape == (0, *SIZE)
