import numpy as np
import torch

from mrcnn_lightning.inference.drawing import class_color, draw, side_by_side


def test_masks_boxes_and_names_are_drawn_and_the_image_stays() -> None:
    image = torch.full((3, 60, 80), 100, dtype=torch.uint8)
    masks = [(np.ones((20, 20), bool), 20, 20), (np.ones((20, 30), bool), 30, 30)]
    boxes = torch.tensor([[20.0, 20, 40, 40], [30, 30, 60, 50]])
    labels = torch.tensor([1, 2])
    drawn = draw(image, boxes=boxes, labels=labels, class_names=["a", "b"], masks=masks)
    assert drawn.shape == image.shape and (image == 100).all()
    first, second = torch.tensor(class_color(1)), torch.tensor(class_color(2))
    assert torch.allclose(drawn[:, 37, 25].float(), (100 + first) / 2, atol=1)
    assert torch.allclose(drawn[:, 45, 45].float(), (100 + second) / 2, atol=1)
    overlap = ((100 + first) / 2 + second) / 2  # both shine through, none is black
    assert torch.allclose(drawn[:, 35, 35].float(), overlap, atol=1)
    assert torch.equal(drawn[:, 20, 30], first.to(torch.uint8))
    assert (drawn[:, 5, 75] == 100).all()


def test_nothing_to_draw() -> None:
    image = torch.full((3, 60, 80), 100, dtype=torch.uint8)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert torch.equal(draw(image, **nothing, class_names=["a"]), image)
    flat = draw(
        image,
        boxes=torch.tensor([[5.0, 5, 5, 9]]),
        labels=torch.tensor([1]),
        class_names=["a"],
        scores=torch.tensor([0.5]),
    )
    assert torch.equal(flat, image)


def test_side_by_side() -> None:
    left, right = torch.zeros(3, 9, 5, dtype=torch.uint8), torch.ones(3, 9, 7, dtype=torch.uint8)
    both = side_by_side(left, right)
    assert both.shape == (3, 9, 16) and (both[:, :, :5] == 0).all() and (both[:, :, 9:] == 1).all()
