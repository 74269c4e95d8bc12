from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data._utils import worker
from torchvision.transforms import v2

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.dataset import COCODataset, collate
from mrcnn_lightning.data.sizing import PadToMultiple
from mrcnn_lightning.data.transforms import ImageTargets, Sample, compose_transforms
from mrcnn_lightning.ops.sampling import image_seed


@pytest.fixture
def dataset(shapes_root: Path, tmp_path: Path) -> COCODataset:
    file = shapes_root / "annotations" / "instances_train.json"
    return COCODataset(
        Annotations.load(file, cache_dir=tmp_path),
        folder=shapes_root / "train",
        transform=compose_transforms(
            [v2.RandomShortestSize([48, 64, 80]), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5)]
        ),
        mini_mask_size=28,
        skip_empty=False,
        max_objects=None,
        boxes_from="file",
        copy_paste=0.0,
        skip_damaged=False,
        seed=3,
    )


def equal(one: Sample, other: Sample) -> bool:
    def flat(sample: Sample) -> list[Any]:
        return [sample.image_id, sample.seed, sample.original_size, sample.image, *sample.targets]

    return all(
        torch.equal(value, others) if isinstance(value, torch.Tensor) else value == others
        for value, others in zip(flat(one), flat(other), strict=True)
    )


def test_augmentation_depends_on_seed_epoch_and_image_alone(dataset: COCODataset) -> None:
    first = dataset[(0, 5)]
    torch.manual_seed(99)
    torch.rand(3)
    state = torch.get_rng_state()
    assert equal(dataset[(0, 5)], first)
    assert torch.equal(torch.get_rng_state(), state)
    others = [dataset[(epoch, 5)] for epoch in range(1, 6)]
    assert not any(equal(other, first) for other in others)
    assert len({tuple(other.image.shape) for other in others}) > 1
    assert first.seed == image_seed(3, 0, first.image_id)


def test_a_transform_that_fails_names_the_image(dataset: COCODataset) -> None:
    def nothing(image: torch.Tensor, points: torch.Tensor) -> Any:
        return v2.functional.resize(image, [0, 9]), points

    dataset.transform = nothing
    with pytest.raises(ValueError, match=r"^\S+\.png of 64 x 64 pixels cannot go through .*: "):
        dataset[(0, 5)]


def test_a_sample_is_the_file_and_its_objects(dataset: COCODataset) -> None:
    dataset.transform = compose_transforms([])
    sample = dataset[(0, 3)]
    objects = dataset.annotations.objects(3)
    assert sample.original_size == (64, 64) and sample.image.shape == (3, 64, 64)
    assert torch.equal(sample.targets.boxes, objects.boxes.clamp(0, 64))
    assert torch.equal(sample.targets.labels, objects.labels)
    masks = sample.targets.masks
    assert masks is not None and masks.shape == (len(objects.labels), 28, 28)
    assert sample.targets.masks.flatten(1).any(1).all()


def test_objects_are_thinned_out_at_random(dataset: COCODataset) -> None:
    most = max(range(len(dataset)), key=lambda index: len(dataset[(0, index)].targets.labels))
    whole = dataset[(0, most)]
    assert len(whole.targets.labels) >= 3
    dataset.max_objects = 2
    drawn = set()
    for epoch in range(20):
        dataset.max_objects = None
        every = dataset[(epoch, most)]
        dataset.max_objects = 2
        some = dataset[(epoch, most)]
        assert torch.equal(some.image, every.image) and equal(some, dataset[(epoch, most)])
        chosen = tuple(
            every.targets.boxes.tolist().index(box) for box in some.targets.boxes.tolist()
        )
        assert len(chosen) == 2 and chosen[0] < chosen[1]
        for name in ("labels", "crowd", "masks", "mask_frames"):
            assert torch.equal(
                getattr(some.targets, name), getattr(every.targets, name)[list(chosen)]
            )
        drawn.add(chosen)
    assert len(drawn) > 2
    dataset.max_objects = len(whole.targets.labels)
    assert equal(dataset[(0, most)], whole)


def sample(height: int, width: int, num: int, **more: Any) -> Sample:
    targets: dict[str, Any] = {
        "boxes": torch.ones(num, 4),
        "labels": torch.ones(num, dtype=torch.int64),
        "crowd": torch.zeros(num, dtype=torch.bool),
        "masks": torch.ones(num, 5, 5, dtype=torch.uint8),
        "mask_frames": torch.ones(num, 4),
    }
    return Sample(
        image=torch.full((3, height, width), 7, dtype=torch.uint8),
        image_id=40 + num,
        seed=num,
        original_size=(2 * height, 4 * width),
        targets=ImageTargets(**(targets | more)),
    )


def test_batches_are_padded() -> None:
    batch = collate([sample(30, 50, 0), sample(64, 33, 3)], canvas=PadToMultiple(multiple=32))
    assert batch.images.shape == (2, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert (batch.images[0, :, :30, :50] == 7).all() and batch.images[0].sum() == 7 * 3 * 30 * 50
    assert batch.image_ids.tolist() == [40, 43] and batch.seeds.tolist() == [0, 3]
    assert batch.windows.tolist() == [[0, 0, 50, 30], [0, 0, 33, 64]]
    assert batch.scales.tolist() == [[0.25, 0.5]] * 2
    assert batch.original_sizes.tolist() == [[60, 200], [128, 132]]
    targets = batch.targets
    assert targets is not None and targets.masks is not None and targets.mask_frames is not None
    assert targets.labels.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert targets.boxes.shape == (2, 3, 4) and targets.masks.shape == (2, 3, 5, 5)
    assert targets.trainable.sum() == 3 and targets.masks[0].sum() == 0


def test_a_worker_collates_into_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batch, which needs no copy on its way to the main process."""
    targets = ImageTargets(
        boxes=torch.rand(3, 4),
        labels=torch.tensor([1, 2, 3]),
        crowd=torch.tensor([False, True, False]),
        masks=torch.randint(0, 2, (3, 5, 5), dtype=torch.uint8),
        mask_frames=torch.rand(3, 4),
    )
    few = ImageTargets(*(value[:1] for value in targets if value is not None))
    samples = [
        Sample(torch.randint(1, 256, (3, 40, 50), dtype=torch.uint8), 1, 2, (20, 25), targets),
        Sample(torch.randint(1, 256, (3, 64, 30), dtype=torch.uint8), 3, 4, (32, 15), few),
    ]
    plain = collate(samples, canvas=PadToMultiple(multiple=32))
    monkeypatch.setattr(worker, "_worker_info", SimpleNamespace(id=0))
    shared = collate(samples, canvas=PadToMultiple(multiple=32))
    assert shared.targets is not None and plain.targets is not None
    pairs = [(shared.images, plain.images)]
    pairs += [
        (getattr(shared.targets, name), getattr(plain.targets, name)) for name in targets._fields
    ]
    for ours, theirs in pairs:
        assert ours.is_shared() and not theirs.is_shared()
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
    assert shared.images.stride()[1] == 1 and not shared.images[0, :, 40:].any()


def test_batches_without_objects_and_without_masks() -> None:
    empty = sample(32, 32, 0, masks=None, mask_frames=None)
    batch = collate([empty], canvas=PadToMultiple(multiple=32))
    assert batch.targets is not None and batch.targets.masks is None
    assert batch.targets.boxes.shape == (1, 1, 4) and not batch.targets.trainable.any()
