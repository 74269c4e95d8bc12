import numpy as np
import torch
from PIL import Image

from mrcnn_lightning.inference import drawing
from mrcnn_lightning.inference.drawing import class_color, draw, draw_objects, side_by_side
from mrcnn_lightning.results.image_detections import ImageDetections
from mrcnn_lightning.results.rle import encode_crop


def pixels_of(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def test_masks_boxes_and_names_are_drawn_and_the_image_stays() -> None:
    image = torch.full((3, 600, 800), 100, dtype=torch.uint8)
    masks = [(np.ones((200, 200), bool), 200, 200), (np.ones((200, 300), bool), 300, 300)]
    boxes = torch.tensor([[200.0, 200, 400, 400], [300, 300, 600, 500]])
    labels = torch.tensor([1, 2])
    picture = draw_objects(image, boxes=boxes, labels=labels, class_names=["a", "b"], masks=masks)
    drawn = pixels_of(picture)
    assert drawn.shape == image.shape and (image == 100).all()
    first, second = torch.tensor(class_color(1)), torch.tensor(class_color(2))
    assert torch.allclose(drawn[:, 370, 250].float(), (100 + first) / 2, atol=1)
    assert torch.allclose(drawn[:, 450, 450].float(), (100 + second) / 2, atol=1)
    overlap = ((100 + first) / 2 + second) / 2  # both shine through, none is black
    assert torch.allclose(drawn[:, 350, 350].float(), overlap, atol=1)
    assert torch.equal(drawn[:, 200, 300], first.to(torch.uint8))
    assert (drawn[:, 50, 750] == 100).all()


def test_small_images_are_drawn_large() -> None:
    image = torch.full((3, 60, 80), 100, dtype=torch.uint8)
    box = torch.tensor([[20.0, 20, 40, 40]])
    drawn = draw_objects(image, boxes=box, labels=torch.tensor([1]), class_names=["disc"])
    assert drawn.size == (560, 420)
    assert drawn.getpixel((140, 200)) == class_color(1)  # the box's left side, at 7 times 20


def test_names_do_not_cover_one_another() -> None:
    taken: list[tuple[float, float, float, float]] = []
    canvas = drawing.ImageDraw.Draw(Image.new("RGB", (512, 512)))
    for _ in range(12):
        drawing._write(canvas, "triangle 0.99", (100.0, 100.0, 180.0, 180.0), (9, 9, 9), taken)
    assert not any(
        drawing._overlap(one, other) for i, one in enumerate(taken) for other in taken[:i]
    )
    assert all(0 <= side <= 512 for spot in taken for side in spot)


def test_detections_of_a_file(tmp_path: object) -> None:
    file = f"{tmp_path}/photo.png"
    Image.new("RGB", (600, 512), (100, 100, 100)).save(file)
    mask = encode_crop(np.ones((50, 50), bool), 100, 100, (512, 600))
    found = ImageDetections(
        image_id=1,
        size=(512, 600),
        boxes=torch.tensor([[100.0, 100, 150, 150], [300, 300, 400, 400]]).double(),
        scores=torch.tensor([0.9, 0.1]).double(),
        labels=torch.tensor([1, 1]),
        rles=[mask, mask],
    )
    drawn = pixels_of(draw(file, found, ["disc"]))
    assert (drawn[:, 120, 120] != 100).any() and (drawn[:, 350, 300] == 100).all()
    assert (pixels_of(draw(file, found, ["disc"], min_score=0.1))[:, 350, 300] != 100).any()


def test_nothing_to_draw() -> None:
    image = torch.full((3, 512, 80), 100, dtype=torch.uint8)
    for boxes in (torch.zeros(0, 4), torch.tensor([[5.0, 5, 5, 9]])):
        labels = torch.ones(len(boxes), dtype=torch.int64)
        drawn = draw_objects(image, boxes=boxes, labels=labels, class_names=["a"])
        assert torch.equal(pixels_of(drawn), image)


def test_side_by_side() -> None:
    left, right = Image.new("RGB", (5, 9), "black"), Image.new("RGB", (7, 9), "red")
    both = pixels_of(side_by_side(left, right))
    assert both.shape == (3, 9, 16) and not both[:, :, :5].any() and (both[0, :, 9:] == 255).all()


def test_names_of_a_crowded_image_are_left_out() -> None:
    """Of 101 objects: boxes alone, a pixel wide, and nothing beside them."""
    corner = torch.arange(101)[:, None] * torch.tensor([5, 0]) + 10
    boxes = torch.cat([corner, corner + torch.tensor([4, 20])], dim=1).float()
    image = torch.zeros(3, 100, 520, dtype=torch.uint8)
    labels = torch.ones(101, dtype=torch.int64)
    picture = draw_objects(image, boxes=boxes, labels=labels, class_names=["a"])
    pixels = pixels_of(picture).amax(0) > 0
    assert not pixels[:10].any() and not pixels[30:].any()
    assert pixels[10, 10:14].all() and not pixels[11:29, 11:13].any()
    few = draw_objects(image, boxes=boxes[:100], labels=labels[:100], class_names=["a"])
    assert (pixels_of(few).amax(0) > 0)[:10].any()
