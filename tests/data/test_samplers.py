from collections import Counter
from itertools import chain

import pytest
import torch

from mrcnn_lightning.data.samplers import EvalBatchSampler, TrainBatchSampler
from mrcnn_lightning.ops.sampling import image_seed

SIZES = torch.tensor([[30, 40]] * 37 + [[40, 30]] * 14)


def sampler(
    *,
    sizes: torch.Tensor = SIZES,
    factors: torch.Tensor | None = None,
    batch_size: int = 4,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    seen: int = 0,
) -> TrainBatchSampler:
    return TrainBatchSampler(
        sizes,
        factors=torch.ones(len(sizes), dtype=torch.float64) if factors is None else factors,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        accumulate=accumulate,
        seed=1,
        images_seen=lambda: seen,
    )


def test_an_epoch_holds_each_image_once_but_for_the_rest() -> None:
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 51 // 4
    images = [index for batch in batches for _, index in batch]
    assert len(set(images)) == len(images) == 48
    assert {epoch for batch in batches for epoch, _ in batch} == {0}
    assert images != sorted(images)


def test_wide_and_high_images_are_apart_but_for_one_batch() -> None:
    mixed = [batch for batch in sampler() if len({index < 37 for _, index in batch}) > 1]
    assert len(mixed) <= 1


def test_epochs_have_other_orders_and_leave_out_other_images() -> None:
    first, second = list(sampler()), list(sampler(seen=48))
    assert {epoch for batch in second for epoch, _ in batch} == {1}
    assert [[index for _, index in batch] for batch in first] != [
        [index for _, index in batch] for batch in second
    ]
    counts = Counter(
        index for epoch in range(40) for batch in sampler(seen=48 * epoch) for _, index in batch
    )
    assert set(counts) == set(range(51)) and min(counts.values()) > 25


def test_repeated_steps_go_on_where_training_stands() -> None:
    first = list(sampler(batch_size=8, accumulate=2))[:6]
    for step in (0, 2, 3, 7):
        repeated = sampler(batch_size=8, accumulate=2, seen=8 * step)
        repeated.repeated_steps = 3
        assert list(repeated)[: 6 - step % 3 * 2] == first[step % 3 * 2 :]


@pytest.mark.parametrize(("num_wide", "num_high"), [(48, 1), (40, 3), (3, 40), (1, 4), (1602, 15)])
def test_no_image_is_left_out_for_ever(num_wide: int, num_high: int) -> None:
    stream = TrainBatchSampler(
        torch.tensor([[30, 40]] * num_wide + [[40, 30]] * num_high),
        factors=torch.ones(num_wide + num_high, dtype=torch.float64),
        batch_size=4,
        rank=0,
        world_size=1,
        accumulate=1,
        seed=1,
        images_seen=lambda: 0,
    )
    orders = [stream._steps(epoch) for epoch in range(40)]
    assert len(torch.cat(orders).unique()) == num_wide + num_high
    for order in orders:
        assert sum(len(set((images < num_wide).tolist())) > 1 for images in order) <= 1


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (2, 2), (4, 1), (1, 4)])
def test_the_images_of_a_step_do_not_depend_on_how_they_are_dealt(
    world_size: int, accumulate: int
) -> None:
    """Of one orientation; where there are two, a device's batch has one of them."""
    wide = torch.tensor([[30, 40]] * 51)
    ranks = [
        list(sampler(sizes=wide, rank=rank, world_size=world_size, accumulate=accumulate))
        for rank in range(world_size)
    ]
    for step, expected in enumerate(sampler(sizes=wide)):
        dealt = chain.from_iterable(
            chain.from_iterable(batches[step * accumulate : (step + 1) * accumulate])
            for batches in ranks
        )
        assert sorted(dealt) == sorted(expected)
    assert all(len(batches) == 12 * accumulate for batches in ranks)


def grouped(order: list[int], size: int) -> list[list[int]]:
    """Detectron2's AspectRatioGroupedDataset, from its definition: the first full bucket goes."""
    buckets: dict[bool, list[int]] = {False: [], True: []}
    batches = []
    for index in order:
        height, width = MIXED[index].tolist()
        bucket = buckets[width > height]
        bucket.append(index)
        if len(bucket) == size:
            batches.append(bucket.copy())
            bucket.clear()
    rest = buckets[True] + buckets[False]
    return [*batches, rest] if rest else batches


MIXED = torch.tensor([[30, 40]] * 70 + [[40, 40]] * 13 + [[40, 30]] * 20)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (4, 1), (8, 1), (2, 2)])
def test_a_device_has_images_of_one_orientation_and_a_step_has_both(
    world_size: int, accumulate: int
) -> None:
    ranks = [
        list(
            sampler(
                sizes=MIXED,
                batch_size=8,
                rank=rank,
                world_size=world_size,
                accumulate=accumulate,
            )
        )
        for rank in range(world_size)
    ]
    steps = [
        [[index for _, index in batches[step * accumulate + part]] for batches in ranks]
        for step in range(12)
        for part in range(accumulate)
    ]
    batches = list(chain.from_iterable(steps))
    generator = torch.Generator().manual_seed(image_seed(1, 0, -1))
    order = torch.randperm(len(MIXED), generator=generator)[:96].tolist()
    assert batches == grouped(order, 8 // (world_size * accumulate))
    if world_size == 4:
        both = [len({index < 70 for index in chain.from_iterable(step)}) > 1 for step in steps]
        assert sum(both) > 6


@pytest.mark.parametrize("seen", [0, 4, 28, 44, 48, 92, 480])
def test_it_goes_on_after_the_images_that_were_seen(seen: int) -> None:
    stream = [batch for epoch in range(12) for batch in sampler(seen=48 * epoch)]
    assert list(sampler(seen=seen)) == stream[seen // 4 : seen // 4 + 12]
    first = iter(stream := sampler(seen=seen))
    assert next(first) == next(iter(stream))  # iterations are independent


def test_evaluation_sees_every_image_once_in_batches_of_one_size() -> None:
    for world_size in (1, 2, 3):
        ranks = [
            EvalBatchSampler(SIZES, batch_size=5, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        batches = [tuple(batch) for rank in ranks for batch in rank]
        assert sum(len(rank) for rank in ranks) == len(batches) == 8 + 3
        assert sorted(index for batch in batches for _, index in batch) == list(range(51))
        assert all(len({index < 37 for _, index in batch}) == 1 for batch in batches)
        whole = EvalBatchSampler(SIZES, batch_size=5, rank=0, world_size=1)
        assert set(batches) == {tuple(batch) for batch in whole}


def test_a_rank_that_would_get_no_batch_repeats_one() -> None:
    ranks = [EvalBatchSampler(SIZES[:3], batch_size=5, rank=r, world_size=3) for r in range(3)]
    assert [list(rank) for rank in ranks] == [[[(0, 0), (0, 1), (0, 2)]]] * 3
