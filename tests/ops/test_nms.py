import torch
import torchvision

from mrcnn_lightning.ops.nms import batched_nms
from tests.ops.test_boxes import random_boxes


def test_batched_nms_is_torchvisions_for_each_image() -> None:
    boxes = random_boxes(3, 200).float()
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(3, 200, generator=generator)
    scores[0, 50:] = -torch.inf
    scores[1] = -torch.inf
    groups = torch.randint(0, 4, (200,), generator=generator)
    index, valid = batched_nms(boxes, scores, groups, iou_threshold=0.4, num=60)
    for image in range(3):
        there = scores[image] > -torch.inf
        kept = torchvision.ops.batched_nms(
            boxes[image, there], scores[image, there], groups[there], 0.4
        )[:60]
        expected = torch.nonzero(there)[:, 0][kept]
        assert torch.equal(index[image, valid[image]], expected)
        assert valid[image].sum() == len(expected)
    assert valid[2].sum() > 20
