import numpy as np
import pycocotools.mask
import pytest
import torch
import torchvision
from torchvision.models.detection.roi_heads import paste_masks_in_image

from mrcnn_lightning.ops import masks as mask_ops
from tests.ops.test_boxes import random_boxes

SIZE = (90, 110)


def predicted(num: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth masks and boxes, some of which leave the image or are smaller than a pixel."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(num, 1, 5, 5, generator=generator)
    masks = torch.nn.functional.interpolate(masks, (28, 28), mode="bicubic").clamp(0, 1)[:, 0]
    boxes = random_boxes(num).float() - 10
    boxes[0] = torch.tensor([0.0, 0, 110, 90])
    boxes[1] = torch.tensor([30.2, 30.3, 30.4, 30.5])
    boxes[2] = torch.tensor([10.0, 0, 30, 90])
    masks[2] = 1
    return masks, boxes


def test_pasted_masks_are_torchvisions_bit_for_bit() -> None:
    masks, boxes = predicted()
    expected = paste_masks_in_image(masks[:, None], boxes, SIZE)[:, 0] > 0.5
    pasted = mask_ops.paste_masks(masks, boxes, SIZE)
    assert torch.equal(pasted, expected)
    assert expected.any(dim=(1, 2)).sum() > 30


def test_run_lengths_are_pycocotools_of_the_whole_canvas() -> None:
    masks, boxes = predicted()
    canvas = mask_ops.paste_masks(masks, boxes, SIZE)
    rles = mask_ops.encode_masks(masks, boxes, SIZE, mask_ops.resized_crops)
    for rle, mask in zip(rles, canvas.numpy(), strict=True):
        expected = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == expected["counts"]
    assert torch.equal(mask_ops.decode_masks(rles, SIZE), canvas)


@pytest.mark.parametrize(
    "crop",
    [np.ones((6, 8)), np.zeros((6, 8)), np.eye(6, 8), np.ones((6, 3)), np.zeros((0, 0))],
)
def test_run_lengths_of_edge_cases(crop: np.ndarray) -> None:
    for top, left in ((0, 0), (6 - crop.shape[0], 8 - crop.shape[1])):
        canvas = np.zeros((6, 8), dtype=np.uint8)
        canvas[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        expected = pycocotools.mask.encode(np.asfortranarray(canvas))["counts"]
        assert mask_ops.encode_crop(crop.astype(bool), top, left, (6, 8)) == expected


def test_no_masks() -> None:
    nothing = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    assert mask_ops.encode_masks(*nothing, SIZE, mask_ops.resized_crops) == []
    assert mask_ops.paste_masks(*nothing, SIZE).shape == (0, *SIZE)
    assert mask_ops.decode_masks([], SIZE).shape == (0, *SIZE)


def test_targets_of_full_size_masks_are_roi_aligns() -> None:
    masks = mask_ops.paste_masks(*predicted(), SIZE).to(torch.uint8)
    rois = random_boxes(40, seed=5)
    frames = torch.tensor([0.0, 0, 110, 90], dtype=torch.float64).expand(40, 4)
    targets = mask_ops.mask_targets(masks, frames, rois, 28)
    numbered = torch.cat([torch.arange(40, dtype=torch.float64)[:, None], rois], dim=1)
    expected = torchvision.ops.roi_align(masks[:, None].double(), numbered, 28, aligned=True)
    torch.testing.assert_close(targets, expected[:, 0], rtol=0, atol=1e-12)


def test_targets_of_mini_masks_agree_with_the_shape_itself() -> None:
    """A disc's mini-mask, seen through RoIs around it, against the disc's own equation."""
    frame = torch.tensor([[20.0, 30, 80, 90]], dtype=torch.float64)
    cell = (torch.arange(112) + 0.5) / 112 * 2 - 1
    mini = (cell[:, None] ** 2 + cell**2 <= 1).to(torch.uint8)[None]
    roi = torch.tensor([[10.0, 40, 70, 100]], dtype=torch.float64)
    target = mask_ops.mask_targets(mini, frame, roi, 28)[0] > 0.5
    x = 10 + (torch.arange(28) + 0.5) / 28 * 60
    y = 40 + (torch.arange(28) + 0.5) / 28 * 60
    truth = (y[:, None] - 60) ** 2 + (x - 50) ** 2 <= 900
    assert (target != truth).double().mean() < 0.01


def test_sampled_crops_are_bilinear_at_pixel_centres() -> None:
    """Detectron2's pasting: grid_sample over the whole canvas, from a half on."""
    masks, boxes = predicted()
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # (N, 1)
    x = (torch.arange(SIZE[1], dtype=boxes.dtype) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (torch.arange(SIZE[0], dtype=boxes.dtype) + 0.5 - y1) / (y2 - y1) * 2 - 1
    shape = (len(boxes), *SIZE)
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
    whole = torch.nn.functional.grid_sample(
        masks[:, None].to(boxes.dtype), grid, align_corners=False
    )[:, 0]
    pasted = mask_ops.paste_masks(masks, boxes, SIZE, mask_ops.sampled_crops)
    assert (pasted == (whole >= 0.5)).all() and pasted.any(dim=(1, 2)).sum() > 30


def test_binary_targets_are_rounded() -> None:
    masks = mask_ops.paste_masks(*predicted(), SIZE).to(torch.uint8)
    frames = torch.tensor([0.0, 0, 110, 90], dtype=torch.float64).expand(40, 4)
    soft = mask_ops.mask_targets(masks, frames, random_boxes(40, seed=5), 28)
    binary = mask_ops.binary_mask_targets(masks, frames, random_boxes(40, seed=5), 28)
    assert torch.equal(binary, (soft >= 0.5).double()) and binary.any() and (soft % 1).any()


def test_cropped_targets_are_grid_samples_of_the_mini_mask() -> None:
    generator = torch.Generator().manual_seed(2)
    masks = (torch.rand(40, 56, 56, generator=generator) < 0.5).to(torch.uint8)
    frames, rois = random_boxes(40, seed=6), random_boxes(40, seed=7)
    targets = mask_ops.cropped_mask_targets(masks, frames, rois, 28)
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
