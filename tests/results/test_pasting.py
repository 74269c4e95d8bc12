import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from mrcnn_lightning.results.pasting import sampled_crops
from tests.ops.test_boxes import random_boxes
from tests.results.whole_masks import paste_masks

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
    pasted = paste_masks(masks, boxes, SIZE)
    assert torch.equal(pasted, expected)
    assert expected.any(dim=(1, 2)).sum() > 30


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
    pasted = paste_masks(masks, boxes, SIZE, sampled_crops)
    assert (pasted == (whole >= 0.5)).all() and pasted.any(dim=(1, 2)).sum() > 30
