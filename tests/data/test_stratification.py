import numpy as np
import pytest

from mrcnn_lightning.data.stratification import stratify


def kinds(seed: int = 0, num_images: int = 400, num_classes: int = 30) -> np.ndarray:
    """Classes from frequent to rare, as a set of photos has them."""
    chances = 0.5 / np.arange(1, num_classes + 1)
    return np.random.default_rng(seed).random((num_images, num_classes)) < chances


def deviation(kinds: np.ndarray, parts: np.ndarray, shares: list[float]) -> float:
    """The paper's measure: how far each part's share of each class is from its own, on average."""
    counts = np.stack([kinds[parts == part].sum(0) for part in range(len(shares))])
    wanted = np.outer(shares, kinds.sum(0))
    return float(np.abs(counts - wanted).mean())


def test_classes_are_dealt_far_more_evenly_than_at_random() -> None:
    shares = [0.7, 0.2, 0.1]
    for seed in range(3):
        of_images = kinds(seed)
        parts = stratify(of_images, shares, seed=seed)
        random = np.random.default_rng(seed).choice(3, size=len(parts), p=shares)
        assert np.abs(np.bincount(parts) / len(parts) - shares).max() < 0.03
        assert deviation(of_images, parts, shares) < 0.5 * deviation(of_images, random, shares)
        # Rare ones too: what is in ten images is in each part.
        for column in of_images.T[of_images.sum(0) >= 10]:
            assert set(parts[column]) == {0, 1, 2}


def test_seeds_and_images_without_objects() -> None:
    of_images = kinds()
    of_images[:40] = False
    parts = stratify(of_images, [0.75, 0.25], seed=1)
    empty = np.bincount(parts[~of_images.any(axis=1)])
    assert empty[0] == pytest.approx(0.75 * empty.sum(), abs=1)
    np.testing.assert_array_equal(parts, stratify(of_images, [0.75, 0.25], seed=1))
    assert (parts != stratify(of_images, [0.75, 0.25], seed=2)).any()


@pytest.mark.parametrize("groups", [[[0, 1, 2], [5, 399]], [list(range(40))]])
def test_groups_stay_together(groups: list[list[int]]) -> None:
    parts = stratify(kinds(), [0.8, 0.2], groups=groups)
    assert all(len(set(parts[group])) == 1 for group in groups)
    assert abs((parts == 0).mean() - 0.8) < 0.03


def test_a_part_of_one_image() -> None:
    assert sorted(stratify(np.ones((2, 1), dtype=bool), [0.5, 0.5])) == [0, 1]
