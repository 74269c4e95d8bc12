import pytest
import torch
from torchvision.models.detection._utils import Matcher

from mrcnn_lightning.ops import matching
from mrcnn_lightning.ops.boxes import iou
from tests.ops.test_boxes import random_boxes


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_match_is_torchvisions(
    low_quality: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "CHUNK", chunk)
    boxes, candidates = random_boxes(2, 9), random_boxes(400, seed=1)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, 5:] = False
    boxes[0, 5:] = 0
    objects, label = matching.match(
        boxes,
        valid,
        candidates,
        positive_iou=0.5,
        negative_iou=0.3,
        low_quality_matches=low_quality,
    )
    peer = Matcher(0.5, 0.3, allow_low_quality_matches=low_quality)
    for image in range(2):
        expected = peer(iou(boxes[image, valid[image]], candidates))
        wanted = torch.where(expected >= 0, 1, torch.where(expected == -1, 0, -1))
        assert torch.equal(label[image], wanted)
        positive = expected >= 0
        assert positive.sum() > 5
        assert torch.equal(objects[image, positive], expected[positive])


def test_an_object_that_nothing_touches_makes_no_anchor_positive() -> None:
    boxes = torch.tensor([[[500.0, 500, 510, 510], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, False]])
    _, label = matching.match(
        boxes,
        valid,
        random_boxes(30).float(),
        positive_iou=0.7,
        negative_iou=0.3,
        low_quality_matches=True,
    )
    assert (label == matching.NEGATIVE).all()


def test_each_image_may_have_its_own_candidates() -> None:
    candidates = random_boxes(3, 50, seed=2)
    boxes, valid = candidates[:, :4], torch.ones(3, 4, dtype=torch.bool)
    objects, label = matching.match(
        boxes, valid, candidates, positive_iou=0.99, negative_iou=0.5, low_quality_matches=False
    )
    assert torch.equal(objects[:, :4], torch.arange(4).expand(3, -1))
    assert (label[:, :4] == matching.POSITIVE).all()
