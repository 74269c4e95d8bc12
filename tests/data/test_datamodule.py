import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hydra
import pytest
import torch
from hydra.errors import InstantiationException
from torch import Tensor

from mrcnn_lightning.data.datamodule import COCODataModule
from mrcnn_lightning.structures import Batch, map_tensors
from tests.conftest import compose, shared


def build(*overrides: str) -> COCODataModule:
    cfg = compose(*overrides)
    has_masks = cfg.model.mask_head is not None
    return hydra.utils.instantiate(cfg.data, _convert_="all", with_masks=has_masks)


@pytest.fixture
def small(tiny: Callable[..., list[str]]) -> Callable[..., COCODataModule]:
    return lambda *overrides: build(*tiny("data.num_workers=0", *overrides))


def test_batches_of_both_splits(small: Callable[..., COCODataModule]) -> None:
    data = small()
    data.setup("fit")
    assert data.class_names == ["disc", "box", "triangle"] and data.category_ids == [3, 7, 12]
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 4 and batch.images.shape[2:] == (64, 64)
    assert batch.targets is not None and batch.targets.masks is not None
    assert batch.targets.masks.shape[2:] == (56, 56)
    ids = [i for batch in data.val_dataloader() for i in batch.image_ids.tolist()]
    assert sorted(ids) == list(range(1, 11))


def test_evaluation_batches_hold_one_padded_size(tmp_path: Path) -> None:
    root = shared("data/coco_tiny")
    data = build(
        "data=coco", f"data_root={root}", f"data.cache_dir={tmp_path}", "data.num_workers=0"
    )
    data.setup("validate")
    assert len(data.class_names) == 80 and data.category_ids[-1] == 90
    seen = []
    for batch in data.val_dataloader():
        heights, widths = batch.windows[:, 3], batch.windows[:, 2]
        height, width = batch.images.shape[2:]
        assert ((height - heights) < 32).all() and ((width - widths) < 32).all()
        scales = torch.stack([widths, heights], dim=1) / batch.original_sizes.flip(1)
        torch.testing.assert_close(batch.scales, scales.double(), rtol=1e-6, atol=0)
        seen += batch.image_ids.tolist()
    assert sorted(seen) == sorted(data.annotations["val"].image_ids.tolist())


def test_every_image_of_a_real_set_with_every_worker(tmp_path: Path) -> None:
    """All of COCO's kinds of objects in one pass; workers change nothing."""
    root = shared("data/coco_tiny")
    batches = []
    for workers in (0, 2):
        data = build(
            "data=coco",
            f"data_root={root}",
            f"data.cache_dir={tmp_path}",
            f"data.num_workers={workers}",
            "data.train_transforms.0.min_size=[160]",
        )
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets.masks, other.targets.masks)
        real = one.targets.trainable
        assert one.targets.masks[real].flatten(1).any(1).float().mean() > 0.95
    assert sum(len(batch) for batch in batches[0]) == 80
    assert any(batch.targets.crowd.any() for batch in batches[0])


def same(one: Batch, other: Batch) -> bool:
    found: list[list[Tensor]] = [[], []]
    for batch, tensors in zip((one, other), found, strict=True):
        map_tensors(batch, lambda each, to=tensors: to.append(each) or each)  # type: ignore[misc]
    return len(found[0]) > 5 and all(map(torch.equal, *found))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3")
def test_one_seed_is_one_result_with_any_number_of_workers(
    small: Callable[..., COCODataModule],
) -> None:
    jitter = "data.train_transforms=[{_target_:torchvision.transforms.v2.ColorJitter,hue:0.5}]"
    batches = []
    for workers in (0, 1, 3):
        data = small(f"data.num_workers={workers}", jitter, "data.copy_paste=0.7")
        data.setup("fit")
        torch.manual_seed(workers)
        batches.append(list(data.train_dataloader()))
    assert len(batches[0]) == 6
    for alone, *others in zip(*batches, strict=True):
        assert all(same(alone, other) for other in others)


def test_a_preview_is_what_training_sees_and_changes_nothing(
    small: Callable[..., COCODataModule],
) -> None:
    """From where training stands, too, and of no other generator than its own."""
    data = small("data.preview=6")
    data.setup("fit")
    for seen in (0, 8):
        data.load_state_dict({"images": seen, "steps": 0})
        before = torch.get_rng_state(), data.state_dict()
        preview = list(data.preview_batches())
        assert torch.equal(before[0], torch.get_rng_state()) and before[1] == data.state_dict()
        assert sum(map(len, preview)) == 8
        for one, other in zip(preview, data.train_dataloader(), strict=False):
            assert same(one, other)
    data = small("data.preview=1000")
    data.setup("fit")
    assert sum(map(len, data.preview_batches())) == 24
    with pytest.raises(InstantiationException, match=r"data.preview=0 is less than 1"):
        small("data.preview=0")


def test_the_test_set_is_the_validation_set_or_its_own(
    small: Callable[..., COCODataModule], shapes_root: Path
) -> None:
    data = small()
    assert data.files["test"] == data.files["val"]
    own = shapes_root / "annotations" / "instances_train.json"
    data = small(f"data.test_json={own}", f"data.test_images={shapes_root}/train")
    data.setup("test")
    assert sum(len(batch) for batch in data.test_dataloader()) == 24


def test_state_says_where_training_stands(small: Callable[..., COCODataModule]) -> None:
    data = small()
    data.setup("fit")
    assert data.state_dict() == {"images": 0, "steps": 0}
    first = [batch.image_ids.tolist() for batch in data.train_dataloader()]
    data.load_state_dict({"images": 8, "steps": 0})
    assert [batch.image_ids.tolist() for batch in data.train_dataloader()][:4] == first[2:]


def test_loaders_can_start_processes_anew(small: Callable[..., COCODataModule]) -> None:
    """Where processes are not forked (macOS), a data set is sent to its workers."""
    data = small()
    data.setup("fit")
    data.trainer = torch.nn.Module()  # type: ignore[assignment]
    data.trainer.world_size = data.trainer.accumulate_grad_batches = 1
    data.trainer.fast_dev_run = True
    data.trainer.global_rank = data.trainer.global_step = 0
    data.trainer.cannot_be_sent = lambda: None
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert len(pickle.dumps(loader.dataset)) < 10_000


def test_a_batch_that_does_not_divide_by_devices_and_accumulation(
    small: Callable[..., COCODataModule],
) -> None:
    data = small("data.batch_size=6")
    data.setup("fit")
    data.trainer = SimpleNamespace(world_size=2, accumulate_grad_batches=2)  # type: ignore
    with pytest.raises(ValueError, match=r"size=6 .* 2 devices x 2 .*make it a multiple of 4"):
        data.train_dataloader()


def refused(data: COCODataModule, stage: str = "fit") -> str:
    with pytest.raises(ValueError, match="data.") as caught:
        data.setup(stage)
        data.train_dataloader()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_files(small: Callable[..., COCODataModule], tmp_path: Path) -> None:
    assert "data.val_images=nowhere does not exist" in refused(small("data.val_images=nowhere"))
    (tmp_path / "empty").mkdir()
    error = refused(small(f"data.val_images={tmp_path}/empty"))
    assert "10 of 10 images are missing from data.val_images=" in error
    assert error.endswith("000001.png, 000002.png, 000003.png, 000004.png, 000005.png, ...")


def test_splits_of_other_classes(
    small: Callable[..., COCODataModule], shapes_root: Path, tmp_path: Path
) -> None:
    content: Any = json.loads((shapes_root / "annotations" / "instances_val.json").read_text())
    content["categories"][0]["name"] = "circle"
    (tmp_path / "val.json").write_text(json.dumps(content))
    error = refused(small(f"data.val_json={tmp_path}/val.json"))
    assert "val.json has other categories" in error
    assert "only one of them has circle with the id 3" in error


def test_other_names_may_be_of_any_splits_classes(
    small: Callable[..., COCODataModule], shapes_root: Path, tmp_path: Path
) -> None:
    content: Any = json.loads((shapes_root / "annotations" / "instances_val.json").read_text())
    content["categories"][0]["name"] = "circle"  # as the validation set says already
    (tmp_path / "val.json").write_text(json.dumps(content))
    val = f"data.val_json={tmp_path}/val.json"
    data = small(val, "data.classes={disc:circle}")
    data.setup("fit")
    assert data.class_names == ["circle", "box", "triangle"]
    assert data.annotations["val"].class_names == data.class_names
    error = refused(small(val, "data.classes={disc:circle,dog:cat}"))
    assert "data.classes names dog, which is no class of the data: it has disc" in error
    with pytest.raises(hydra.errors.InstantiationException, match="is no table of names"):
        small("data.classes=[disc]")


def test_an_epoch_that_shows_too_little(small: Callable[..., COCODataModule]) -> None:
    assert "an epoch shows 0.24 images" in refused(small("data.train_weights=[0.01]"))


def test_fewer_images_than_a_batch(small: Callable[..., COCODataModule]) -> None:
    assert "data.batch_size=32, but data.train_json=" in refused(small("data.batch_size=32"))


def without_objects(shapes_root: Path, file: Path, *, images: int, crowd: int) -> list[int]:
    """The small set, some images emptied, others with nothing but crowds; ids of all the rest."""
    content: Any = json.loads((shapes_root / "annotations" / "instances_train.json").read_text())
    ids = [image["id"] for image in content["images"]]
    kept = [a for a in content["annotations"] if a["image_id"] not in ids[:images]]
    for annotation in kept:
        annotation["iscrowd"] |= int(annotation["image_id"] in ids[images : images + crowd])
    file.write_text(json.dumps(content | {"annotations": kept}))
    return sorted({entry["image_id"] for entry in kept if not entry["iscrowd"]})


def test_training_can_skip_images_without_objects(
    small: Callable[..., COCODataModule], shapes_root: Path, tmp_path: Path
) -> None:
    with_objects = without_objects(shapes_root, tmp_path / "some.json", images=4, crowd=3)
    files = [f"data.train_json={tmp_path}/some.json", f"data.val_json={tmp_path}/some.json"]
    data = small(*files, f"data.val_images={shapes_root}/train", "data.skip_empty=true")
    data.setup("fit")
    all_ids = data.annotations["train"].image_ids.tolist()
    epoch = list(data.train_dataloader())
    ids = [number for batch in epoch for number in batch.image_ids.tolist()]
    assert len(set(ids)) == len(ids) == len(with_objects) // 4 * 4 <= len(all_ids) - 7
    assert set(ids) <= set(with_objects)
    assert all(batch.targets.trainable.any(1).all() for batch in epoch)
    data.load_state_dict({"images": 8, "steps": 0})
    resumed = list(data.train_dataloader())
    assert [b.image_ids.tolist() for b in resumed[:2]] == [b.image_ids.tolist() for b in epoch[2:]]
    assert torch.equal(resumed[0].images, epoch[2].images)
    evaluated = [number for batch in data.val_dataloader() for number in batch.image_ids.tolist()]
    assert sorted(evaluated) == all_ids

    data = small(files[0])
    data.setup("fit")
    every = [number for batch in data.train_dataloader() for number in batch.image_ids.tolist()]
    assert sorted(every) == all_ids


def test_too_few_images_with_objects(
    small: Callable[..., COCODataModule], shapes_root: Path, tmp_path: Path
) -> None:
    skip = (f"data.train_json={tmp_path}/few.json", "data.skip_empty=true")
    few = len(without_objects(shapes_root, tmp_path / "few.json", images=20, crowd=2))
    assert 0 < few < 4
    error = refused(small(*skip))
    assert "data.batch_size=4, but" in error
    assert f"has {few} images with objects (data.skip_empty=true): make it {few} or less" in error
    without_objects(shapes_root, tmp_path / "few.json", images=20, crowd=4)
    assert "has no images with objects" in refused(small(*skip))


def test_boxes_from_masks_want_masks(
    small: Callable[..., COCODataModule], shapes_root: Path, tmp_path: Path
) -> None:
    error = refused(small("data.boxes_from=pixels", "model=faster_rcnn"))
    assert "the model has no mask head" in error and "data.boxes_from=file" in error
    content: Any = json.loads((shapes_root / "annotations" / "instances_train.json").read_text())
    chosen = next(entry for entry in content["annotations"] if not entry["iscrowd"])
    chosen["segmentation"] = []
    (tmp_path / "train.json").write_text(json.dumps(content))
    file = f"data.train_json={tmp_path}/train.json"
    error = refused(small("data.boxes_from=pixels", file))
    assert f"1 objects of {file} have no segmentation" in error
    assert f"(annotations {chosen['id']})" in error


def test_only_training_changes_the_objects(small: Callable[..., COCODataModule]) -> None:
    options = ("data.boxes_from=pixels", "data.max_objects=1", "data.skip_empty=true")
    data, plain = small(*options), small()
    for one in (data, plain):
        one.setup("fit")
    for batch in data.train_dataloader():
        assert batch.targets.boxes.shape[1] == 1
        assert torch.equal(batch.targets.boxes, batch.targets.boxes.round())
        assert torch.equal(batch.targets.mask_frames, batch.targets.boxes)
    for one, other in zip(data.val_dataloader(), plain.val_dataloader(), strict=True):
        assert torch.equal(one.targets.boxes, other.targets.boxes)


def test_no_objects_at_most_is_refused(small: Callable[..., COCODataModule]) -> None:
    assert "data.max_objects=0 leaves none" in refused(small("data.max_objects=0"))


def test_a_canvas_that_is_too_small(small: Callable[..., COCODataModule]) -> None:
    data = small("data/canvas=centred_square", "data.canvas.side=50")
    data.setup("validate")
    with pytest.raises(ValueError, match="data.canvas.side=50 has no room .* of 64 pixels"):
        data.val_dataloader()


def test_transforms_that_shapes_cannot_follow(small: Callable[..., COCODataModule]) -> None:
    perspective = "{_target_: torchvision.transforms.v2.RandomPerspective}"
    with pytest.raises(hydra.errors.InstantiationException, match="has RandomPerspective, which"):
        small(f"data.train_transforms=[{perspective}]")


@pytest.mark.parametrize("key", ["limit_train_batches", "overfit_batches"])
@pytest.mark.parametrize(("limit", "num", "remedy"), [(5, 5, 4), (0.3, 3, 2), (1, 1, 2)])
def test_batches_that_make_no_whole_steps_are_refused(
    small: Callable[..., COCODataModule], key: str, limit: float, num: int, remedy: int
) -> None:
    """Lightning makes a step of what is left over at an epoch's end, of fewer images."""
    data = small()
    data.setup("fit")
    settings = {"accumulate_grad_batches": 2, "overfit_batches": 0, "fast_dev_run": False}
    settings |= {"limit_train_batches": limit, key: limit}
    place = {"world_size": 1, "global_rank": 0, "global_step": 0}
    data.trainer = SimpleNamespace(**place, **settings)
    message = f"trainer.{key}={limit} is {num} batches an epoch, .*batches=2: make it {remedy}"
    with pytest.raises(ValueError, match=message):
        data.train_dataloader()
    data.trainer.limit_train_batches = remedy
    assert len(data.train_dataloader()) == 12


def test_several_sets_with_classes_by_other_names(tmp_path: Path) -> None:
    """Two real sets, whose ids of classes clash: some steps' batches have images of both."""
    coco, balloon = shared("data/coco_tiny"), shared("data/balloon")
    jsons = [
        f"[{coco}/annotations/instances_{split}2017.json,{balloon}/annotations/instances_{split}.json]"
        for split in ("train", "val")
    ]
    folders = [f"[{coco}/{split}2017,{balloon}/{split}]" for split in ("train", "val")]
    data = build(
        "data=coco",
        *(f"data.{split}_json={each}" for split, each in zip(("train", "val"), jsons, strict=True)),
        *(f"data.{s}_images={each}" for s, each in zip(("train", "val"), folders, strict=True)),
        "data.train_weights=[1,2]",
        "data.classes={balloon:toy,kite:toy,person:null}",
        f"data.cache_dir={tmp_path}",
        "data.num_workers=0",
        "data.train_transforms.0.min_size=[64]",
    )
    data.setup("fit")
    names = data.class_names
    assert len(names) == 79 and "toy" in names and not {"balloon", "kite", "person"} & set(names)
    loader = data.train_dataloader()
    counts = torch.bincount(
        torch.tensor([index for batch in loader.batch_sampler for _, index in batch])
    )
    assert int(counts[:80].max()) == 1 and counts[80:].float().mean() > 1.9
    batch = next(iter(loader))
    assert batch.targets is not None and int(batch.targets.labels.max()) <= 79
    for split in ("train", "val"):
        annotations = data.annotations[split]
        toys = annotations.labels == names.index("toy") + 1
        num_balloons = {"train": 255, "val": 50}[split]
        assert int(toys.sum()) >= num_balloons and len(annotations.image_ids.unique()) > 80
