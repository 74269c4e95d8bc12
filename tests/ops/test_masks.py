import torch
import torchvision

from mrcnn_lightning.ops.masks import binary_mask_targets, cropped_mask_targets, mask_targets
from tests.ops.test_boxes import random_boxes
from tests.results.test_pasting import SIZE, predicted
from tests.results.whole_masks import paste_masks


def test_targets_of_full_size_masks_are_roi_aligns() -> None:
    masks = paste_masks(*predicted(), SIZE).to(torch.uint8)
    rois = random_boxes(40, seed=5)
    frames = torch.tensor([0.0, 0, 110, 90], dtype=torch.float64).expand(40, 4)
    targets = mask_targets(masks, frames, rois, 28)
    numbered = torch.cat([torch.arange(40, dtype=torch.float64)[:, None], rois], dim=1)
    expected = torchvision.ops.roi_align(masks[:, None].double(), numbered, 28, aligned=True)
    torch.testing.assert_close(targets, expected[:, 0], rtol=0, atol=1e-12)


def test_targets_of_mini_masks_agree_with_the_shape_itself() -> None:
    """A disc's mini-mask, seen through RoIs around it, against the disc's own equation."""
    frame = torch.tensor([[20.0, 30, 80, 90]], dtype=torch.float64)
    cell = (torch.arange(112) + 0.5) / 112 * 2 - 1
    mini = (cell[:, None] ** 2 + cell**2 <= 1).to(torch.uint8)[None]
    roi = torch.tensor([[10.0, 40, 70, 100]], dtype=torch.float64)
    target = mask_targets(mini, frame, roi, 28)[0] > 0.5
    x = 10 + (torch.arange(28) + 0.5) / 28 * 60
    y = 40 + (torch.arange(28) + 0.5) / 28 * 60
    truth = (y[:, None] - 60) ** 2 + (x - 50) ** 2 <= 900
    assert (target != truth).double().mean() < 0.01


def test_binary_targets_are_rounded() -> None:
    masks = paste_masks(*predicted(), SIZE).to(torch.uint8)
    frames = torch.tensor([0.0, 0, 110, 90], dtype=torch.float64).expand(40, 4)
    soft = mask_targets(masks, frames, random_boxes(40, seed=5), 28)
    binary = binary_mask_targets(masks, frames, random_boxes(40, seed=5), 28)
    assert torch.equal(binary, (soft >= 0.5).double()) and binary.any() and (soft % 1).any()


def test_cropped_targets_are_grid_samples_of_the_mini_mask() -> None:
    generator = torch.Generator().manual_seed(2)
    masks = (torch.rand(40, 56, 56, generator=generator) < 0.5).to(torch.uint8)
    frames, rois = random_boxes(40, seed=6), random_boxes(40, seed=7)
    targets = cropped_mask_targets(masks, frames, rois, 28)
    steps = torch.arange(28, dtype=torch.float64) / 27
    inside_of_a_frame = 0
    for mask, frame, roi, target in zip(masks, frames, rois, targets, strict=True):
        origin, sides = frame[:2], frame[2:] - frame[:2]
        start, end = (roi[:2] - origin) / sides, (roi[2:] - origin) / sides
        x, y = start[:, None] + steps * (end - start)[:, None]
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1) * 2 - 1
        sampled = torch.nn.functional.grid_sample(
            mask[None, None].double(), grid[None], align_corners=True
        )[0, 0]
        inside = ((grid >= -1) & (grid <= 1)).all(-1)
        assert torch.equal(target, (sampled * inside).round())
        inside_of_a_frame += int(inside.sum())
    assert inside_of_a_frame > 1000
