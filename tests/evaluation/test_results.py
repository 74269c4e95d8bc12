import torch

from mrcnn_lightning.results.image_detections import per_image
from mrcnn_lightning.results.pasting import sampled_crops
from mrcnn_lightning.results.rle import decode_masks
from mrcnn_lightning.structures import Detections
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
