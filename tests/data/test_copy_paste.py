"""Copy-paste against full-size masks: what torchvision's references do with whole images."""

import numpy as np
import pycocotools.mask
import pytest
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from mrcnn_lightning.data.annotations import Objects
from mrcnn_lightning.data.copy_paste import paste_objects
from mrcnn_lightning.data.object_masks import pixels_of
from mrcnn_lightning.data.transforms import MovedImage, image_targets, move_objects


def some_objects(
    seed: int, size: tuple[int, int], *, first_label: int
) -> tuple[Tensor, MovedImage]:
    """Rectangles of whole pixels, every other one as run lengths: their masks (G, H, W) too."""
    random = np.random.default_rng(seed)
    masks = torch.zeros(6, *size, dtype=torch.uint8)
    shapes: list[list[Tensor] | bytes] = []
    for number, mask in enumerate(masks):
        y, x = random.integers(0, size[0] - 8), random.integers(0, size[1] - 8)
        height, width = random.integers(3, size[0] - y + 1), random.integers(3, size[1] - x + 1)
        mask[y : y + height, x : x + width] = 1
        corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
        polygons = [torch.tensor(corners, dtype=torch.float32)]
        encoded = pycocotools.mask.encode(np.asfortranarray(mask.numpy()))["counts"]
        shapes.append(encoded if number % 2 else polygons)
    objects = Objects(
        masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]),
        torch.arange(first_label, first_label + 6),
        torch.arange(6) == 5,
        shapes,
    )
    image = torch.from_numpy(random.integers(0, 256, (3, *size), dtype=np.uint8))
    return masks.bool(), move_objects(image, objects, v2.Identity(), with_masks=True)


@pytest.mark.parametrize("other_size", [(40, 50), (30, 70)])
def test_what_is_pasted_is_no_longer_others(other_size: tuple[int, int]) -> None:
    num_gone = num_cut = 0
    for seed in range(15):
        masks, onto = some_objects(seed, (40, 50), first_label=1)
        other_masks, other = some_objects(100 + seed, other_size, first_label=101)
        before = onto.image.clone()
        torch.manual_seed(seed)
        result = paste_objects(onto, other)
        assert torch.equal(onto.image, before)
        assert result.masks is not None
        labels = result.labels.tolist()
        assert 106 not in labels, "a crowd was pasted"
        # Where the images differ in size, the other one is cut or padded to the first.
        there = torch.zeros(6, 40, 50, dtype=torch.bool)
        height, width = min(40, other_size[0]), min(50, other_size[1])
        there[:, :height, :width] = other_masks[:, :height, :width]
        filled = torch.zeros(3, 40, 50, dtype=torch.uint8)
        filled[:, :height, :width] = other.image[:, :height, :width]
        alpha = there[[label - 101 for label in labels if label > 100]].any(0)
        assert torch.equal(result.image, torch.where(alpha, filled, before))
        for number, mask in enumerate(masks, start=1):
            visible = mask & ~alpha
            is_kept = number in labels
            assert is_kept == (visible.sum() >= 0.1 * mask.sum())
            num_gone += not is_kept
            num_cut += is_kept and not torch.equal(visible, mask)
        for label, mask, box in zip(labels, result.masks, result.boxes, strict=True):
            expected = there[label - 101] if label > 100 else masks[label - 1] & ~alpha
            assert torch.equal(pixels_of(mask, (0, 0, 50, 40)).bool(), expected)
            drawn = masks_to_boxes(expected[None])[0] + torch.tensor([0, 0, 1, 1])
            torch.testing.assert_close(box, drawn)
    assert num_gone > 2 and num_cut > 10  # or nothing was shown


def test_an_object_without_a_mask_has_nothing_to_paste() -> None:
    _, onto = some_objects(0, (40, 50), first_label=1)
    _, other = some_objects(1, (40, 50), first_label=101)
    box = torch.tensor([[5.0, 5, 30, 30]])
    label, crowd = torch.tensor([7]), torch.tensor([False])
    outside = [torch.tensor([[60.0, 60], [70, 60], [70, 70]])]
    for shape in (b"", outside):
        objects = Objects(box, label, crowd, [shape])
        bare = move_objects(other.image, objects, v2.Identity(), with_masks=True)
        for seed in range(4):
            torch.manual_seed(seed)
            result = paste_objects(onto, bare)
            assert torch.equal(result.image, onto.image) and 7 not in result.labels.tolist()


def test_images_without_objects() -> None:
    _, onto = some_objects(0, (40, 50), first_label=1)
    no = torch.zeros(0, dtype=torch.int64)
    objects = Objects(torch.zeros(0, 4), no, no.bool(), [])
    empty = move_objects(onto.image, objects, v2.Identity(), with_masks=True)
    for first, second in ((empty, empty), (onto, empty)):
        result = paste_objects(first, second)
        assert torch.equal(result.boxes, first.boxes)
    torch.manual_seed(0)
    targets = image_targets(paste_objects(empty, onto), mini_mask_size=28, boxes_from="file")
    assert 0 < len(targets.labels) < 6 and targets.masks is not None and targets.masks.any()
