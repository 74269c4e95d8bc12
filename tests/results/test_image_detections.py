import dataclasses
import sys

import numpy as np
import pycocotools.mask
import pytest
import supervision
import torch

from mrcnn_lightning.results.image_detections import ImageDetections, per_image
from mrcnn_lightning.results.pasting import sampled_crops
from mrcnn_lightning.results.rle import decode_masks, encode_crop
from mrcnn_lightning.structures import Detections
from mrcnn_lightning.user_error import UserError
from tests.conftest import make_batch


def test_boxes_without_area_take_a_place_and_are_no_result() -> None:
    """As in Detectron2, whose `detector_postprocess` keeps what is not empty in the image."""
    batch = make_batch([(48, 64)], [[]], [[]])
    boxes = torch.tensor(
        [[4.0, 5, 20, 30], [64, 3, 64, 20], [10, 48, 30, 48], [9, 9, 9, 9], [1, 1, 2, 2], [0] * 4]
    )
    labels = torch.tensor([1, 2, 3, 1, 2, 0])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.0])
    masks = torch.ones(1, 6, 28, 28)
    found = Detections(boxes[None], scores[None], labels[None], masks)
    (image,) = per_image(found, batch, sampled_crops)
    assert image.boxes.tolist() == [[4, 5, 20, 30], [1, 1, 2, 2]]
    assert image.labels.tolist() == [1, 2] and image.rles is not None
    assert decode_masks(image.rles, image.size).sum(dim=(1, 2)).tolist() == [16 * 25, 1]


def test_one_images_detections_in_other_forms() -> None:
    batch = make_batch([(48, 64)], [[]], [[]])
    boxes = torch.tensor([[4.0, 5, 20, 30], [1, 1, 9, 9]])
    labels, scores = torch.tensor([2, 1]), torch.tensor([0.75, 0.5])
    found = Detections(boxes[None], scores[None], labels[None], torch.ones(1, 2, 28, 28))
    (image,) = per_image(found, batch, sampled_crops)
    assert len(image) == 2 and len(image.above(0.6)) == 1
    masks = image.masks()
    assert masks.shape == (2, 48, 64) and masks[0, 5:30, 4:20].all() and masks[0].sum() == 400
    assert torch.equal(image.above(0.6).masks(), masks[:1])
    first, second = image.to_coco([3, 7])
    assert (first["category_id"], second["category_id"]) == (7, 3)
    assert first["bbox"] == [4, 5, 16, 25] and first["score"] == 0.75
    assert pycocotools.mask.area(first["segmentation"]) == 400
    with pytest.raises(UserError, match="no masks: the model has no mask head"):
        dataclasses.replace(image, rles=None).masks()


def test_as_supervisions_detections() -> None:
    nothing = ImageDetections(
        image_id=1,
        size=(4, 6),
        boxes=torch.tensor([[0.0, 0, 2, 2]]).double(),
        scores=torch.tensor([0.5]).double(),
        labels=torch.tensor([3]),
        rles=[encode_crop(np.ones((2, 2), bool), 0, 0, (4, 6))],
    )
    found = nothing.to_supervision()
    assert isinstance(found, supervision.Detections) and found.class_id.tolist() == [2]
    assert found.mask.sum() == 4


def test_supervision_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    nothing = torch.zeros(0).double()
    found = ImageDetections(1, (4, 6), torch.zeros(0, 4).double(), nothing, nothing.long(), None)
    with pytest.raises(UserError, match="pip install supervision"):
        found.to_supervision()
