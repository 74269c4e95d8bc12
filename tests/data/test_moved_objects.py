"""Boxes and masks after any transform against torchvision's full-size masks (hypothesis)."""

from typing import Any

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from mrcnn_lightning.data.annotations import Objects
from mrcnn_lightning.data.augmentation import RandomRotation90
from mrcnn_lightning.data.object_masks import pixels_of
from mrcnn_lightning.data.transforms import compose_transforms, image_targets, move_objects

SIZE = (60, 80)
IMAGE = torch.zeros(3, *SIZE, dtype=torch.uint8)
ANGLES = st.floats(-180, 180).map(lambda angle: v2.RandomRotation((angle, angle)))
EXPANDED = st.floats(-180, 180).map(lambda angle: v2.RandomRotation((angle, angle), expand=True))
SHEARED = st.tuples(st.floats(-30, 30), st.floats(-30, 30)).map(
    lambda shear: v2.RandomAffine(0, shear=(shear[0], shear[0], shear[1], shear[1]))
)
SHEARED_ALONG_X = st.floats(-35, 35).map(lambda shear: v2.RandomAffine(0, shear=(shear, shear)))
SMALLER = st.floats(0.6, 1.0).map(lambda scale: v2.RandomAffine(0, scale=(scale, scale)))
SEQUENCES = st.tuples(EXPANDED, st.just(v2.RandomHorizontalFlip(1.0)), SMALLER).map(v2.Compose)


def drawn(polygon: Tensor) -> Tensor:
    rles = pycocotools.mask.frPyObjects([polygon.flatten().tolist()], *SIZE)
    return torch.from_numpy(pycocotools.mask.decode(rles)[..., 0])


def one_object(polygon: Tensor, shape: Any) -> Objects:
    box = torch.cat([polygon.amin(0), polygon.amax(0)])[None]
    return Objects(box, torch.tensor([1]), torch.tensor([False]), [shape])


def run_lengths_of(polygon: Tensor) -> bytes:
    counts: bytes = pycocotools.mask.encode(np.asfortranarray(drawn(polygon).numpy()))["counts"]
    return counts


@pytest.mark.parametrize("kind", ["polygon", "run lengths"])
@settings(max_examples=20, deadline=None)
@given(
    move=st.one_of(ANGLES, EXPANDED, SHEARED, SHEARED_ALONG_X, SMALLER, SEQUENCES),
    middle=st.tuples(st.floats(16, 64), st.floats(16, 44)),
    half=st.tuples(st.floats(8, 14), st.floats(8, 14)),
)
def test_a_mask_moved_then_boxed_is_its_box_moved(
    kind: str, move: v2.Transform, middle: tuple[float, float], half: tuple[float, float]
) -> None:
    """A rhombus touches the middle of each of its box's sides: a turned box is too large by far."""
    corners = torch.tensor([[-1.0, 0], [0, -1], [1, 0], [0, 1]])
    rhombus = torch.tensor(middle) + corners * torch.tensor(half)
    full = drawn(rhombus)
    objects = one_object(rhombus, [rhombus] if kind == "polygon" else run_lengths_of(rhombus))
    moved = move_objects(IMAGE, objects, compose_transforms([move]), with_masks=True)
    targets = image_targets(moved, mini_mask_size=56, boxes_from="file")
    expected = move(tv_tensors.Mask(full[None])).as_subclass(Tensor)
    assert expected.shape[1:] == moved.size
    if expected.any():
        box = masks_to_boxes(expected) + torch.tensor([0, 0, 1, 1])
        torch.testing.assert_close(
            targets.boxes, box, atol=2.0, rtol=0, msg=lambda text: f"{move}: {text}"
        )


GROWING = st.one_of(
    EXPANDED,
    st.tuples(ANGLES, st.just(v2.RandomHorizontalFlip(1.0)), SMALLER).map(v2.Compose),
    st.integers(0, 30).map(lambda room: v2.Pad(room)),
)


@pytest.mark.parametrize("kind", ["polygon", "run lengths"])
@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(20, 60), st.integers(20, 80)),
    grow=GROWING,
    middle=st.tuples(st.floats(16, 64), st.floats(16, 44)),
)
def test_what_a_crop_cut_away_does_not_come_back(
    kind: str, size: tuple[int, int], grow: v2.Transform, middle: tuple[float, float]
) -> None:
    corners = torch.tensor([[-14.0, 0], [0, -12], [14, 0], [0, 12]])
    rhombus = torch.tensor(middle) + corners
    objects = one_object(rhombus, [rhombus] if kind == "polygon" else run_lengths_of(rhombus))
    move = v2.Compose([v2.CenterCrop(size), grow])
    moved = move_objects(IMAGE, objects, compose_transforms([move]), with_masks=True)
    expected = move(tv_tensors.Mask(drawn(rhombus)[None])).as_subclass(Tensor)[0]
    assert moved.masks is not None
    height, width = moved.size
    ours = pixels_of(moved.masks[0], (0, 0, width, height))
    # A line of pixels along the outline, of 74 at most, may be either one's.
    assert (ours != expected).sum() <= 37
    targets = image_targets(moved, mini_mask_size=56, boxes_from="outlines")
    if expected.sum() > 4:
        assert len(targets.boxes) == 1
    if not expected.any():
        assert ((targets.boxes[:, 2:] - targets.boxes[:, :2]).amin(1) <= 2).all()


def test_a_crowd_of_a_box_alone_is_turned_by_its_corners() -> None:
    objects = Objects(
        torch.tensor([[30.0, 20, 50, 40]]), torch.tensor([1]), torch.tensor([True]), [b""]
    )
    moved = move_objects(IMAGE, objects, v2.RandomRotation((45, 45)), with_masks=True)
    half = 200**0.5
    expected = torch.tensor([[40 - half, 30 - half, 40 + half, 30 + half]])
    torch.testing.assert_close(moved.boxes, expected)


@pytest.mark.parametrize("kind", ["polygon", "run lengths"])
@pytest.mark.parametrize("turns", [[90, 90, 90, 90], [180, 180], [90, 270], [0]])
def test_quarter_turns_that_end_where_they_began(kind: str, turns: list[int]) -> None:
    polygon = torch.tensor([[10.0, 8], [31, 8], [50, 20], [50, 41], [10, 40]])
    objects = one_object(polygon, [polygon] if kind == "polygon" else run_lengths_of(polygon))
    image = torch.arange(3 * SIZE[0] * SIZE[1]).view(3, *SIZE).to(torch.uint8)
    there_and_back = v2.Compose([v2.RandomRotation((k, k), expand=True) for k in turns])
    before, after = (
        move_objects(image, objects, transform, with_masks=True)
        for transform in (v2.Identity(), there_and_back)
    )
    assert torch.equal(before.image, after.image)
    torch.testing.assert_close(before.boxes, after.boxes, atol=1e-4, rtol=0)
    for one, other in zip(before.masks or [], after.masks or [], strict=True):
        torch.testing.assert_close(one.points, other.points, atol=1e-4, rtol=0)


def test_quarter_turns_are_numpys_and_as_likely() -> None:
    image = torch.arange(3 * SIZE[0] * SIZE[1]).view(3, *SIZE).to(torch.uint8)
    turned = [np.rot90(image.numpy(), k, axes=(1, 2)) for k in range(4)]
    torch.manual_seed(0)
    drawn_turns = []
    for _ in range(400):
        result = RandomRotation90()(tv_tensors.Image(image)).numpy()
        (number,) = (k for k in range(4) if np.array_equal(result, turned[k]))
        drawn_turns.append(number)
    # A fair die of four sides leaves this range once in 10,000 times.
    assert all(65 < count < 140 for count in np.bincount(drawn_turns, minlength=4))
