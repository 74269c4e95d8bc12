"""The confusion matrix against supervision's, and by hand where that has no answer."""

from typing import Any

import numpy as np
import pytest
import supervision
import torch

from mrcnn_lightning.evaluation.confusion import confusion_matrix
from mrcnn_lightning.results.image_detections import ImageDetections

CATEGORIES = [7, 3, 12]


def image(number: int, found: list[tuple[list[float], int, float]]) -> ImageDetections:
    """An image of detections: box, label from 1, score."""
    found = sorted(found, key=lambda each: -each[2])
    return ImageDetections(
        image_id=number,
        size=(400, 400),
        boxes=torch.tensor([box for box, _, _ in found], dtype=torch.float64).view(-1, 4),
        scores=torch.tensor([score for _, _, score in found], dtype=torch.float64),
        labels=torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        rles=None,
    )


def objects(*present: tuple[list[float], int, bool]) -> list[dict[str, Any]]:
    """Objects of an image in COCO's format: box, label from 1, whether it is a crowd."""
    return [
        {
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "category_id": CATEGORIES[label - 1],
            "iscrowd": int(crowd),
        }
        for (x1, y1, x2, y2), label, crowd in present
    ]


def confused(images: list[ImageDetections], truth: dict[int, Any], **limits: float) -> Any:
    limits = {"min_score": 0.5, "min_iou": 0.5} | limits
    return confusion_matrix(images, truth, category_ids=CATEGORIES, **limits)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("min_iou", [0.5, 0.75])
def test_the_same_as_supervision(min_iou: float) -> None:
    """Objects lie apart, and several detections of one agree, the more exact the more confident.

    Else supervision takes the right class first, and the greatest IoU before the greatest score.
    """
    generator = np.random.default_rng(0)
    images, truth, predictions, targets = [], {}, [], []
    for number in range(40):
        found, present = [], []
        for cell in generator.permutation(16)[: generator.integers(0, 12)]:
            x, y = cell % 4 * 100, cell // 4 * 100
            box, label = [x + 20.0, y + 20, x + 80, y + 80], int(generator.integers(1, 4))
            if generator.random() < 0.8:
                present.append((box, label, False))
            guess = label if generator.random() < 0.7 else int(generator.integers(1, 4))
            for shift in generator.permutation(24)[: generator.integers(0, 3)]:
                moved = [box[0] + shift, box[1], box[2] + shift, box[3]]
                found.append((moved, guess, float(0.99 - shift / 40)))
        images.append(image(number, found))
        truth[number] = objects(*present)
        predictions.append(np.array([[*b, c - 1, s] for b, c, s in found]).reshape(-1, 6))
        targets.append(np.array([[*b, c - 1] for b, c, _ in present]).reshape(-1, 5))
    expected = supervision.metrics.detection.ConfusionMatrix.from_tensors(
        predictions, targets, ["a", "b", "c"], conf_threshold=0.5, iou_threshold=min_iou
    ).matrix
    matrix = confused(images, truth, min_iou=min_iou)
    assert matrix.tolist() == expected.astype(int).tolist()
    assert np.trace(matrix) > 25 and (matrix > 0).sum() > 12


def test_the_more_confident_detection_takes_the_object() -> None:
    box, near = [10.0, 10, 110, 110], [12.0, 10, 112, 110]
    found = image(1, [(near, 2, 0.9), (box, 1, 0.8), (box, 1, 0.4)])
    matrix = confused([found], {1: objects((box, 1, False))})
    assert matrix.tolist() == [[0, 1, 0, 0], [0] * 4, [0] * 4, [1, 0, 0, 0]]


def test_what_lies_in_a_crowd_of_its_class_does_not_count() -> None:
    crowd, inner, half = [0.0, 0, 200, 200], [10.0, 10, 50, 50], [190.0, 0, 230, 40]
    truth = {1: objects((crowd, 1, True))}
    inside = image(1, [(inner, 1, 0.9), (inner, 1, 0.8)])
    assert confused([inside], truth).sum() == 0
    others = image(1, [(inner, 2, 0.9), (half, 1, 0.9)])  # another class; only a quarter within
    assert confused([others], truth).tolist() == [[0] * 4, [0] * 4, [0] * 4, [1, 1, 0, 0]]


def test_images_without_objects_or_detections() -> None:
    box = [10.0, 10, 50, 50]
    matrix = confused(
        [image(1, []), image(2, [(box, 3, 0.9)]), image(3, [])], {1: objects((box, 2, False))}
    )
    assert matrix.tolist() == [[0] * 4, [0, 0, 0, 1], [0] * 4, [0, 0, 1, 0]]
