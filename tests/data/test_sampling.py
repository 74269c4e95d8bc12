"""How often images are seen: against the papers' formulas, and over ranks and restarts."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mrcnn_lightning.data import sampling
from mrcnn_lightning.data.samplers import TrainBatchSampler
from mrcnn_lightning.data.sampling import (
    class_balanced,
    images_and_labels,
    part_of,
    repeat_factor,
    uniform,
)
from mrcnn_lightning.user_error import UserError

# Of 100 images: class 1 in all but the last, 2 in ten, 3 in the first one.
IMAGES = torch.tensor([*range(99), *range(10), 0])
LABELS = torch.tensor([1] * 99 + [2] * 10 + [3])
SIZES = torch.tensor([[30, 40]] * 70 + [[40, 30]] * 30)


def detectron2_factors(classes: list[set[int]], threshold: float) -> list[float]:
    """The paper's three equations, image by image as Detectron2 computes them."""
    frequency = Counter(chain.from_iterable(classes))
    factor = {
        each: max(1.0, (threshold / (number / len(classes))) ** 0.5)
        for each, number in frequency.items()
    }
    return [max((factor[each] for each in of_image), default=1.0) for of_image in classes]


@pytest.mark.parametrize("threshold", [0.001, 0.05, 0.3, 1.0])
def test_repeat_factors_are_the_papers(threshold: float) -> None:
    classes: list[set[int]] = [set() for _ in range(100)]
    for image, label in zip(IMAGES.tolist(), LABELS.tolist(), strict=True):
        classes[image].add(label)
    factors = repeat_factor(IMAGES, LABELS, 100, threshold=threshold)
    assert factors.tolist() == pytest.approx(detectron2_factors(classes, threshold), rel=1e-14)
    # By hand: a tenth has class 2, a hundredth class 3.
    if threshold == 0.3:
        assert factors[[0, 1, 50, 99]].tolist() == pytest.approx([30**0.5, 3**0.5, 1, 1])


def test_a_threshold_that_is_no_part_is_refused() -> None:
    with pytest.raises(UserError, match="data.sampling.threshold=0 must be above 0"):
        repeat_factor(IMAGES, LABELS, 100, threshold=0)


def test_class_balanced_draws_a_class_and_then_an_image() -> None:
    times = class_balanced(IMAGES, LABELS, 100)
    assert times.sum().item() == pytest.approx(100)
    assert times[[0, 5, 50, 99]].tolist() == pytest.approx(
        [100 / 3 * (1 / 99 + 1 / 10 + 1), 100 / 3 * (1 / 99 + 1 / 10), 100 / 3 / 99, 0]
    )


def test_pairs_of_images_and_classes() -> None:
    """Crowds and images that are left out do not count; two objects of a class are one pair."""

    class Set(SimpleNamespace):
        def __len__(self) -> int:
            return 4

        def num_objects(self) -> torch.Tensor:
            return torch.tensor([3, 0, 1, 2])

    annotations: Any = Set(
        labels=torch.tensor([2, 2, 1, 1, 3, 1]), crowd=torch.tensor([0, 0, 0, 0, 0, 1]).bool()
    )
    images, labels = images_and_labels(annotations, torch.tensor([0, 1, 3]))
    assert list(zip(images.tolist(), labels.tolist(), strict=True)) == [(0, 1), (0, 2), (2, 3)]


SAMPLINGS = [uniform, partial(repeat_factor, threshold=0.3), class_balanced]


def stream(factors: torch.Tensor, *, rank: int, world_size: int, seen: int) -> TrainBatchSampler:
    return TrainBatchSampler(
        SIZES,
        factors=factors,
        batch_size=8,
        rank=rank,
        world_size=world_size,
        accumulate=1,
        seed=1,
        images_seen=lambda: seen,
    )


@pytest.mark.parametrize("sample", SAMPLINGS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_stopped_within_an_epoch_sees_what_is_left_once(
    sample: sampling.Sampling, world_size: int
) -> None:
    factors = sample(IMAGES, LABELS, 100)
    for epoch in (0, 1):
        num_steps = stream(factors, rank=0, world_size=1, seen=0).num_steps
        ranks = [
            list(stream(factors, rank=rank, world_size=world_size, seen=8 * num_steps * epoch))
            for rank in range(world_size)
        ]
        keys = list(chain.from_iterable(chain.from_iterable(ranks)))
        assert len(set(keys)) == len(keys) == 8 * num_steps  # a repeated image has its own key
        assert {key % 2**32 for key, _ in keys} == {epoch}
        counts = Counter(index for _, index in keys)
        assert sum(counts.values()) == int(factors.sum() + 1e-6) // 8 * 8
        for index, factor in enumerate(factors.tolist()):
            assert counts[index] <= -(-factor // 1)
        for rank, whole in enumerate(ranks):
            for step in (1, 5, num_steps - 1):
                seen = 8 * (num_steps * epoch + step)
                resumed = list(stream(factors, rank=rank, world_size=world_size, seen=seen))
                assert resumed[: num_steps - step] == whole[step:]
            mixed = [batch for batch in whole if len({index < 70 for _, index in batch}) > 1]
            assert len(mixed) <= 1


@pytest.mark.parametrize("sample", SAMPLINGS[1:])
def test_over_epochs_images_come_as_often_as_their_factors_say(sample: sampling.Sampling) -> None:
    factors = sample(IMAGES, LABELS, 100)
    steps = stream(factors, rank=0, world_size=1, seen=0)
    epochs = [torch.bincount(steps._steps(epoch).flatten(), minlength=100) for epoch in range(400)]
    counts = torch.stack(epochs).double()
    # What is left over of an epoch, less than a batch, is any image's.
    share = steps.num_steps * 8 / factors.sum()
    torch.testing.assert_close(counts.mean(0), factors * share, rtol=0, atol=0.12)
    assert torch.equal(counts[:, factors == 0].sum(), torch.zeros((), dtype=torch.float64))


def test_parts_are_nested_and_seeded() -> None:
    every = torch.arange(10, 91)
    parts: Callable[..., set[int]] = lambda limit, seed=3: set(  # noqa: E731
        part_of(every, limit, seed=seed).tolist()
    )
    assert parts(0.1) < parts(0.2) < parts(40) < parts(1.0) == parts(81) == set(every.tolist())
    assert [len(parts(limit)) for limit in (1, 0.1, 0.2, 40)] == [1, 9, 17, 40]
    assert parts(0.2) != parts(0.2, seed=4)
    for limit in (0, 82, 0.0, 1.5, -0.1):
        with pytest.raises(UserError, match=rf"data.limit={limit} must be a number of images"):
            part_of(every, limit, seed=0)
