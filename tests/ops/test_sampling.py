import pytest
import torch

from mrcnn_lightning.ops.sampling import Stage, image_seed, random_keys, sample


@pytest.mark.parametrize(
    ("num_positive", "num_negative", "expected"),
    [
        (300, 900, (128, 128)),
        (5, 900, (5, 251)),
        (0, 900, (0, 256)),
        (300, 10, (128, 10)),
        (0, 0, (0, 0)),
    ],
)
def test_sample_has_the_papers_counts(
    num_positive: int, num_negative: int, expected: tuple[int, int]
) -> None:
    label = torch.full((1, 2000), -1)
    order = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    label[0, order[:num_positive]] = 1
    label[0, order[num_positive : num_positive + num_negative]] = 0
    keys = random_keys(torch.tensor([7]), Stage.ANCHORS, torch.arange(2000))
    indices, positive, valid = sample(label, keys, num=256, positive_fraction=0.5)
    assert indices.shape == (1, 256)
    assert (int(positive.sum()), int((valid & ~positive).sum())) == expected
    chosen = indices[valid]
    assert len(chosen.unique()) == len(chosen)
    assert (label[0, indices[positive]] == 1).all()
    assert (label[0, indices[valid & ~positive]] == 0).all()


def test_sample_of_fewer_candidates_than_wanted() -> None:
    label = torch.tensor([[1, 0, -1]])
    keys = random_keys(torch.tensor([7]), Stage.ROIS, torch.arange(3))
    indices, positive, valid = sample(label, keys, num=512, positive_fraction=0.33)
    assert indices.shape == (1, 3) and valid.sum() == 1 and positive.sum() == 0


def test_random_keys_are_a_pure_function_of_image_and_stage() -> None:
    both = random_keys(torch.tensor([11, 12]), Stage.ROIS, torch.arange(500))
    assert torch.equal(both[1], random_keys(torch.tensor([12]), Stage.ROIS, torch.arange(500))[0])
    assert torch.equal(
        both[:, :100], random_keys(torch.tensor([11, 12]), Stage.ROIS, torch.arange(100))
    )
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(
        both, random_keys(torch.tensor([11, 12]), Stage.ANCHORS, torch.arange(500))
    )
    assert (both >= 0).all() and len(both.unique()) == both.numel()


def test_random_keys_go_by_name_and_not_by_place() -> None:
    slots = torch.tensor([[5, 9, 2**30], [9, 0, 5]])
    drawn = random_keys(torch.tensor([7, 7]), Stage.ROIS, slots)
    assert drawn[0, 0] == drawn[1, 2] and drawn[0, 1] == drawn[1, 0]
    assert len(drawn.unique()) == 4


def test_every_candidate_is_as_likely_as_any_other() -> None:
    draws = 4000
    keys = torch.tensor([image_seed(0, epoch, 5) for epoch in range(draws)])
    label = torch.zeros(draws, 64, dtype=torch.int64)
    random = random_keys(keys, Stage.ANCHORS, torch.arange(64))
    indices, _, _ = sample(label, random, num=16, positive_fraction=0.5)
    counts = torch.bincount(indices.flatten(), minlength=64).double()
    expected = draws * 16 / 64
    # Chi-squared with 63 degrees of freedom: 103 is the 0.1 % point.
    assert (((counts - expected) ** 2) / (expected * 0.75)).sum() < 103
    # Nor do neighbouring images' draws resemble each other.
    rank = random.argsort(dim=1).double()
    correlation = torch.corrcoef(torch.stack([rank[:-1].flatten(), rank[1:].flatten()]))[0, 1]
    assert correlation.abs() < 0.01


def test_image_seed_depends_on_all_it_is_given() -> None:
    keys = {image_seed(s, e, i) for s in range(3) for e in range(3) for i in range(3)}
    assert len(keys) == 27 and all(0 <= key < 2**32 for key in keys)
