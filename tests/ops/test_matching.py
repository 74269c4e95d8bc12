import pytest
import torch
from torchvision.models.detection._utils import Matcher

from mrcnn_lightning.ops import matching
from mrcnn_lightning.ops.boxes import iou
from tests.ops.test_boxes import random_boxes


@pytest.mark.parametrize("low_quality", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("compare", ["_compare_all", "_compare_touching"])
def test_match_is_torchvisions(
    low_quality: bool, chunk: int, compare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "CHUNK", chunk)
    monkeypatch.setattr(matching, "_compare_touching", getattr(matching, compare))
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
        best_matches=matching.BestMatches("all" if low_quality else "none"),
    )
    peer = Matcher(0.5, 0.3, allow_low_quality_matches=low_quality)
    for image in range(2):
        expected = peer(iou(boxes[image, valid[image]], candidates))
        wanted = torch.where(expected >= 0, 1, torch.where(expected == -1, 0, -1))
        assert torch.equal(label[image], wanted)
        positive = expected >= 0
        assert positive.sum() > 5
        assert torch.equal(objects[image, positive], expected[positive])


@pytest.mark.parametrize("best_matches", list(matching.BestMatches))
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("has_ineligible", [False, True])
def test_comparing_what_touches_alone_changes_nothing(
    best_matches: matching.BestMatches, is_shared: bool, has_ineligible: bool
) -> None:
    """Bit for bit, with boxes of whole pixels, many of which tie."""
    for _ in range(5):
        boxes = torch.randint(0, 40, (3, 30, 2)).repeat(1, 1, 2).float()
        boxes[..., 2:] += torch.randint(1, 12, (3, 30, 2))
        valid = torch.rand(3, 30) < torch.tensor([[0.7], [0.1], [0.0]])
        candidates = boxes[:, torch.randperm(30)] + torch.randint(-3, 4, (3, 30, 1))
        candidates = candidates[0] if is_shared else candidates
        eligible = torch.rand(3, 30) < 0.7 if has_ineligible else None
        arguments = (boxes, valid, candidates, eligible, best_matches)
        for ours, wanted in zip(
            matching._compare_touching(*arguments),
            matching._compare_all(*arguments),
            strict=True,
        ):
            assert torch.equal(ours, wanted)


def test_an_object_that_nothing_touches_makes_no_anchor_positive() -> None:
    boxes = torch.tensor([[[500.0, 500, 510, 510], [0, 0, 0, 0]]])
    valid = torch.tensor([[True, False]])
    _, label = matching.match(
        boxes,
        valid,
        random_boxes(30).float(),
        positive_iou=0.7,
        negative_iou=0.3,
        best_matches=matching.BestMatches.ALL,
    )
    assert (label == matching.NEGATIVE).all()


def test_each_image_may_have_its_own_candidates() -> None:
    candidates = random_boxes(3, 50, seed=2)
    boxes, valid = candidates[:, :4], torch.ones(3, 4, dtype=torch.bool)
    objects, label = matching.match(
        boxes,
        valid,
        candidates,
        positive_iou=0.99,
        negative_iou=0.5,
        best_matches=matching.BestMatches.NONE,
    )
    assert torch.equal(objects[:, :4], torch.arange(4).expand(3, -1))
    assert (label[:, :4] == matching.POSITIVE).all()


@pytest.mark.parametrize("chunk", [1, 100])
def test_only_the_first_of_an_objects_best_candidates(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "CHUNK", chunk)
    boxes = random_boxes(2, 6)
    candidates = torch.cat([random_boxes(200, seed=1)] * 2)  # every best one ties with its copy
    valid = torch.tensor([[True] * 6, [True, False] * 3])
    for best_matches, copies in (("all", 2), ("first", 1)):
        _, label = matching.match(
            boxes,
            valid,
            candidates,
            positive_iou=2.0,
            negative_iou=0.3,
            best_matches=matching.BestMatches(best_matches),
        )
        for image in range(2):
            ious = iou(boxes[image, valid[image]], candidates).numpy()
            first = set(ious.argmax(axis=1))
            expected = first if copies == 1 else first | {index + 200 for index in first}
            assert set(torch.nonzero(label[image] == 1)[:, 0].tolist()) == expected


def test_candidates_that_are_not_eligible_are_ignored_and_no_objects_best() -> None:
    boxes, candidates = random_boxes(1, 5), random_boxes(100, seed=3)
    eligible = torch.rand(1, 100, generator=torch.Generator().manual_seed(0)) < 0.5
    options = {"positive_iou": 0.5, "negative_iou": 0.3}
    valid, best = torch.ones(1, 5, dtype=torch.bool), matching.BestMatches.ALL
    objects, label = matching.match(
        boxes, valid, candidates, best_matches=best, eligible=eligible, **options
    )
    alone = matching.match(boxes, valid, candidates[eligible[0]], best_matches=best, **options)
    assert (label[~eligible] == matching.IGNORED).all()
    assert torch.equal(label[eligible], alone.label[0])
    assert torch.equal(objects[eligible], alone.matched_gt[0])


def test_overlaps() -> None:
    boxes, candidates = random_boxes(2, 12), random_boxes(50, seed=4)
    valid = torch.rand(2, 12, generator=torch.Generator().manual_seed(1)) < 0.4
    found = matching.overlaps(boxes, valid, candidates, min_iou=0.1)
    for image in range(2):
        expected = (iou(boxes[image, valid[image]], candidates) >= 0.1).any(0)
        assert torch.equal(found[image], expected) and expected.any() and not expected.all()
