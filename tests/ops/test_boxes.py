import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from mrcnn_lightning.ops import boxes as box_ops


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 100
    sides = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 60 + 0.5
    return torch.cat([corners, corners + sides], dim=-1)


def test_iou_is_torchvisions_for_each_image() -> None:
    boxes, others = random_boxes(2, 5), random_boxes(2, 7, seed=1)
    ious = box_ops.iou(boxes, others)
    for image in range(2):
        expected = torchvision.ops.box_iou(boxes[image], others[image])
        torch.testing.assert_close(ious[image], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_encode_and_decode_are_torchvisions_and_invert_each_other(
    weights: tuple[float, float, float, float],
) -> None:
    boxes, anchors = random_boxes(50), random_boxes(50, seed=1)
    coder = BoxCoder(weights)
    deltas = box_ops.encode(boxes, anchors, weights)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), rtol=1e-12, atol=0)
    decoded = box_ops.decode(deltas, anchors, weights)
    torch.testing.assert_close(decoded, boxes, rtol=1e-12, atol=1e-12)
    wild = deltas * 50
    expected = coder.decode_single(wild, anchors)
    torch.testing.assert_close(box_ops.decode(wild, anchors, weights), expected, rtol=1e-9, atol=0)


def test_encode_of_padding_is_finite() -> None:
    nothing = torch.zeros(3, 4)
    assert box_ops.encode(nothing, nothing, (1, 1, 1, 1)).isfinite().all()
    assert box_ops.encode(nothing, random_boxes(3).float(), (1, 1, 1, 1)).isfinite().all()


def test_clip_cuts_to_each_images_window() -> None:
    boxes = random_boxes(2, 20) - 20
    windows = torch.tensor([[0, 0, 50, 40], [10, 5, 60, 30]], dtype=torch.float64)
    clipped = box_ops.clip(boxes, windows)
    expected = torchvision.ops.clip_boxes_to_image(boxes[0], (40, 50))
    assert torch.equal(clipped[0], expected)
    assert clipped[1, :, 0].min() >= 10 and clipped[1, :, 3].max() <= 30


def test_is_at_least_is_torchvisions() -> None:
    boxes = random_boxes(100)
    kept = torchvision.ops.remove_small_boxes(boxes, 20)
    assert torch.equal(torch.nonzero(box_ops.is_at_least(boxes, 20))[:, 0], kept)
