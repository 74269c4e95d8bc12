import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv_functional

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.augmentation import RandomScale, RandomShorterSide
from mrcnn_lightning.data.dataset import COCODataset, collate
from mrcnn_lightning.data.points import Points
from mrcnn_lightning.data.sizing import (
    Canvas,
    CentredSquare,
    FixedSizes,
    PadToMultiple,
    Resize,
    enlarged,
    shorter_side,
    shorter_side_rounded,
)
from mrcnn_lightning.data.transforms import ImageTargets, Sample
from mrcnn_lightning.evaluation.coco import COCOMetric
from mrcnn_lightning.results.image_detections import per_image
from mrcnn_lightning.results.pasting import resized_crops
from mrcnn_lightning.results.rle import decode_masks
from mrcnn_lightning.structures import Batch, Detections
from mrcnn_lightning.training.callbacks.prediction_pictures import _picture
from mrcnn_lightning.user_error import UserError


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (333, 333), (100, 1000), (1000, 7)])
def test_shorter_sides_are_torchvisions(size: tuple[int, int]) -> None:
    image = torch.zeros(1, *size, dtype=torch.uint8)
    expected = tv_functional.resize(image, [800], max_size=1333)
    resize = Resize(rule=shorter_side, min_size=800, max_size=1333)
    assert resize.size(size) == tuple(expected.shape[1:])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),  # 1066.67
        ((427, 640), (800, 1199)),  # 1199.06
        ((333, 333), (800, 800)),
        ((300, 900), (444, 1333)),  # 444.33
        ((1000, 7), (1333, 9)),  # 9.33
    ],
)
def test_shorter_sides_are_detectron2s(size: tuple[int, int], expected: tuple[int, int]) -> None:
    resize = Resize(rule=shorter_side_rounded, min_size=800, max_size=1333)
    assert resize.size(size) == expected
    assert resize.size((size[1], size[0])) == (expected[1], expected[0])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (768, 1024)),  # enlarged, but 800 would make it 1067 long
        ((640, 427), (1024, 683)),
        ((400, 450), (800, 900)),  # enlarged to the shorter side
        ((333, 333), (800, 800)),
        ((900, 1000), (900, 1000)),  # left alone
        ((1024, 800), (1024, 800)),
        ((1500, 2048), (750, 1024)),  # shrunk
        ((2048, 2048), (1024, 1024)),
        ((100, 2048), (50, 1024)),
        ((1, 9000), (1, 1024)),
    ],
)
def test_enlarging(size: tuple[int, int], expected: tuple[int, int]) -> None:
    resize = Resize(rule=enlarged, min_size=800, max_size=1024)
    assert resize.size(size) == expected
    assert resize.size((size[1], size[0])) == (expected[1], expected[0])


@pytest.mark.parametrize("rule", [shorter_side, shorter_side_rounded, enlarged])
def test_points_are_resized_with_their_image(rule: Any) -> None:
    resize = Resize(rule=rule, min_size=60, max_size=100)
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    points = Points(torch.tensor([[0.0, 0], [30, 20], [7.5, 10]]), canvas_size=(20, 30))
    resized, moved = resize(image, points)
    expected = tv_functional.resize(image, [60, 90])  # which rounds otherwise than v2
    assert (resized.int() - expected.int()).abs().max() <= 1
    assert moved.tolist() == [[0, 0], [90, 60], [22.5, 30]]
    assert torch.equal(resize(image), resized)


def test_padding_to_whole_multiples() -> None:
    with pytest.raises(ValueError, match="data.canvas.multiple=0 is less than 1"):
        PadToMultiple(multiple=0)
    sizes = torch.tensor([[1, 32], [33, 64], [800, 1333]])
    canvas = PadToMultiple(multiple=32)
    assert canvas.size(sizes).tolist() == [[32, 32], [64, 64], [800, 1344]]
    assert canvas.size(sizes[1]).tolist() == [64, 64]
    assert canvas.origins(sizes, torch.tensor([800, 1344])).tolist() == [[0, 0]] * 3
    assert PadToMultiple(multiple=10).size(sizes[2]).tolist() == [800, 1340]


def test_a_square_has_images_in_its_middle() -> None:
    sizes = torch.tensor([[100, 64], [33, 100], [50, 51]])
    canvas = CentredSquare(side=100)
    assert canvas.size(sizes).tolist() == [[100, 100]] * 3
    assert canvas.size(sizes.amax(0)).tolist() == [100, 100]
    origins = canvas.origins(sizes, torch.tensor([100, 100]))
    assert origins.tolist() == [[18, 0], [0, 33], [24, 25]]
    with pytest.raises(ValueError, match="data.canvas.side=99 has no room .* make it 100 or more"):
        CentredSquare(side=99).size(sizes)


def sample(height: int, width: int, boxes: list[list[float]]) -> Sample:
    return Sample(
        image=torch.full((3, height, width), 9, dtype=torch.uint8),
        image_id=1,
        seed=0,
        original_size=(height, width),
        targets=ImageTargets(
            boxes=torch.tensor(boxes).view(-1, 4),
            labels=torch.ones(len(boxes), dtype=torch.int64),
            crowd=torch.zeros(len(boxes), dtype=torch.bool),
            masks=torch.ones(len(boxes), 5, 5, dtype=torch.uint8),
            mask_frames=torch.tensor(boxes).view(-1, 4) + 1,
        ),
    )


def test_objects_lie_where_their_image_does() -> None:
    samples = [sample(20, 33, [[1.5, 2, 30, 18]]), sample(40, 9, [[0, 0, 9, 40], [1, 2, 3, 4]])]
    batch = collate(samples, canvas=CentredSquare(side=48))
    assert batch.images.shape == (2, 3, 48, 48)
    assert batch.windows.tolist() == [[7, 14, 40, 34], [19, 4, 28, 44]]
    assert (batch.images[0, :, 14:34, 7:40] == 9).all()
    assert batch.images[0].sum() == 9 * 3 * 20 * 33 and batch.images[1].sum() == 9 * 3 * 40 * 9
    targets = batch.targets
    assert targets is not None and targets.mask_frames is not None
    assert targets.boxes.tolist() == [
        [[8.5, 16, 37, 32], [0, 0, 0, 0]],
        [[19, 4, 28, 44], [20, 6, 22, 8]],
    ]
    assert targets.mask_frames.tolist() == [
        [[9.5, 17, 38, 33], [0, 0, 0, 0]],
        [[20, 5, 29, 45], [21, 7, 23, 9]],
    ]


def truth_as_detections(batch: Batch) -> Detections:
    """What a model would find that is always right, full-size masks at their boxes."""
    assert batch.targets is not None and batch.targets.masks is not None
    return Detections(
        boxes=batch.targets.boxes,
        scores=batch.targets.trainable.float(),
        labels=torch.where(batch.targets.trainable, batch.targets.labels, 0),
        masks=batch.targets.masks.float(),
    )


def enlarged_batches(root: Path, cache: Path, *, canvas: Canvas) -> list[Batch]:
    """A set whose images are enlarged from 64 pixels to 96, two a batch."""
    dataset = COCODataset(
        Annotations.load(root / "annotations" / "instances_val.json", cache_dir=cache),
        folder=root / "val",
        transform=Resize(rule=enlarged, min_size=96, max_size=96),
        mini_mask_size=28,
        skip_empty=False,
        max_objects=None,
        boxes_from="file",
        copy_paste=0.0,
        skip_damaged=False,
        seed=0,
    )
    pairs = [[dataset[(0, i)], dataset[(0, i + 1)]] for i in range(0, len(dataset), 2)]
    return [collate(pair, canvas=canvas) for pair in pairs]


@pytest.mark.parametrize("size", [(30000, 10), (10, 30000), (1, 5000), (5000, 1), (1, 1)])
def test_no_side_becomes_nothing(size: tuple[int, int]) -> None:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for rule in (shorter_side, shorter_side_rounded, enlarged):
        for resize in (
            Resize(rule=rule, min_size=64, max_size=100),
            RandomShorterSide(rule=rule, min_size=[64], max_size=100),
            RandomScale(side=64, scale_range=[0.1, 0.1]),
        ):
            assert min(resize(image).shape) >= 1 and max(resize(image).shape) <= 100


def test_a_shorter_side_over_the_longest_is_refused() -> None:
    for sides in ({"min_size": 900, "max_size": 800}, {"min_size": 0, "max_size": 800}):
        with pytest.raises(ValueError, match=r"min_size=\d+ max_size=800: the shorter side"):
            Resize(rule=shorter_side, **sides)


def test_the_truth_on_a_square_scores_one(shapes_root: Path, tmp_path: Path) -> None:
    file = shapes_root / "annotations" / "instances_val.json"
    metric = COCOMetric(
        Annotations.load(file, cache_dir=tmp_path).ground_truth,
        category_ids=[3, 7, 12],
        class_names=["disc", "box", "triangle"],
        has_masks=False,
        max_detections=100,
    )
    for batch in enlarged_batches(shapes_root, tmp_path, canvas=CentredSquare(side=128)):
        assert batch.windows[0].tolist() == [16, 16, 112, 112]
        metric.update(per_image(truth_as_detections(batch), batch, resized_crops))
    assert metric.compute()["box_ap"] > 0.999


def test_detections_on_a_square_go_back_to_the_files_pixels(tmp_path: Path) -> None:
    """One object, its box and mask known in the file's pixels, in an image that is not square."""
    image = sample(60, 90, [[30, 15, 60, 45]])
    image.original_size = (40, 60)
    image.targets = image.targets._replace(mask_frames=image.targets.boxes.clone())
    batch = collate([image], canvas=CentredSquare(side=96))
    (found,) = per_image(truth_as_detections(batch), batch, resized_crops)
    assert found.size == (40, 60) and found.rles is not None
    assert found.boxes.tolist() == [[20, 10, 40, 30]]
    (mask,) = decode_masks(found.rles, found.size)
    expected = torch.zeros(40, 60, dtype=torch.bool)
    expected[10:30, 20:40] = True
    assert (mask ^ expected).sum() <= 2 * 4 * 20 and mask[12:28, 22:38].all()


def test_pictures_are_the_same_on_any_canvas(shapes_root: Path, tmp_path: Path) -> None:
    squares = enlarged_batches(shapes_root, tmp_path, canvas=CentredSquare(side=128))
    corners = enlarged_batches(shapes_root, tmp_path, canvas=PadToMultiple(multiple=32))
    for one, other in zip(squares, corners, strict=True):
        assert not torch.equal(one.windows, other.windows)
        pictures = []
        for batch in (one, other):
            x1, y1, x2, y2 = batch.windows[1].int().tolist()
            pixels, found = batch.images[1, :, y1:y2, x1:x2], truth_as_detections(batch)
            names = ["disc", "box", "triangle"]
            pictures.append(_picture(pixels, batch, found, 1, names, 0.5, 512))
        assert pictures[0].tobytes() == pictures[1].tobytes()
        assert pictures[0].size == (2 * 512 + 4, 512)


def test_a_set_of_large_images_fits_a_square(tmp_path: Path) -> None:
    Image.new("RGB", (130, 70)).save(tmp_path / "a.png")
    images = [{"id": 5, "file_name": "a.png", "height": 70, "width": 130}]
    (tmp_path / "a.json").write_text(
        json.dumps({"images": images, "categories": [{"id": 1, "name": "a"}]})
    )
    dataset = COCODataset(
        Annotations.load(tmp_path / "a.json", cache_dir=tmp_path),
        folder=tmp_path,
        transform=Resize(rule=enlarged, min_size=50, max_size=65),
        mini_mask_size=28,
        skip_empty=False,
        max_objects=3,
        boxes_from="pixels",
        copy_paste=0.0,
        skip_damaged=False,
        seed=0,
    )
    batch = collate([dataset[(0, 0)]], canvas=CentredSquare(side=65))
    assert batch.windows.tolist() == [[0, 15, 65, 50]]
    assert batch.targets is not None and not batch.targets.trainable.any()


def test_the_smallest_of_a_few_canvases() -> None:
    canvas = FixedSizes(sizes=[[800, 1344], [1344, 800], [1344, 1344], [800, 1216]])
    images = torch.tensor([[800, 1067], [800, 1217], [801, 600], [1333, 1000], [1, 1]])
    expected = [[800, 1216], [800, 1344], [1344, 800], [1344, 1344], [800, 1216]]
    assert canvas.size(images).tolist() == expected
    assert canvas.size(images[1]).tolist() == expected[1]
    assert not canvas.origins(images, canvas.size(images[0])).any()
    with pytest.raises(UserError, match="no room for images of 1345x20 pixels .*: add a canvas"):
        canvas.size(torch.tensor([[10, 10], [1345, 20]]))
    for sizes in ([], [[800]], [[0, 800]]):
        with pytest.raises(UserError, match="give the height and width of one canvas or more"):
            FixedSizes(sizes=sizes)
