import torch

from tests.conftest import make_batch


def test_to_moves_every_tensor_and_keeps_the_values() -> None:
    batch = make_batch([(40, 50)], [[[1, 2, 30, 40]]], [[2]])
    moved = batch.to("meta")
    assert moved.images.is_meta and moved.targets is not None and moved.targets.boxes.is_meta
    same = batch.to("cpu")
    assert same.targets is not None and batch.targets is not None
    assert torch.equal(same.images, batch.images)
    assert torch.equal(same.targets.boxes, batch.targets.boxes)


def test_padding_and_crowds_are_not_trainable() -> None:
    batch = make_batch([(40, 50), (40, 50)], [[[1, 2, 30, 40], [0, 0, 9, 9]], []], [[2, 1], []])
    assert batch.targets is not None
    batch.targets.crowd[0, 1] = True
    assert batch.targets.trainable.tolist() == [[True, False], [False, False]]
