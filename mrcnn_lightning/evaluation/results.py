"""From the network's canvas back to the images as they are in their files.

B images, D padded detections an image.
"""

from collections.abc import Sequence
from typing import Any

import torch

from mrcnn_lightning.ops import boxes as box_ops
from mrcnn_lightning.ops.masks import Crops, encode_masks
from mrcnn_lightning.structures import Batch, Detections, ImageDetections


def per_image(detections: Detections, batch: Batch, crops: Crops) -> list[ImageDetections]:
    """Each image's detections on the host, in its own pixels, with masks run-length encoded.

    Boxes without area, of objects that the image's edge has cut to nothing, are left out here and
    not in the selector: they have taken places among the best (as in Detectron2).

    Args:
        detections: of the batch.
        batch: where they were found.
        crops: how masks are pasted, see `resized_crops`.
    """
    # All of it is on its way before the host waits, once.
    detections = detections.to("cpu", non_blocking=True)
    frames = (batch.windows, batch.image_ids, batch.original_sizes)
    windows, image_ids, sizes = (each.to("cpu", non_blocking=True) for each in frames)
    if batch.images.device.type != "cpu":
        torch.accelerator.current_stream(batch.images.device).synchronize()
    origins, scales = windows[:, None, :2].double(), batch.scales[:, None]  # (B, 1, 2)
    boxes = detections.boxes.double()
    boxes = torch.cat([(boxes[..., :2] - origins) / scales, (boxes[..., 2:] - origins) / scales], 2)
    has_area = box_ops.has_area(boxes)  # (B, D)
    images = []
    for image, (image_id, (height, width)) in enumerate(
        zip(image_ids.tolist(), sizes.tolist(), strict=True)
    ):
        found = (detections.labels[image] > 0) & has_area[image]
        rles = None
        if detections.masks is not None:
            masks = detections.masks[image, found]
            rles = encode_masks(masks, boxes[image, found], (height, width), crops)
        images.append(
            ImageDetections(
                image_id=image_id,
                size=(height, width),
                boxes=boxes[image, found],
                scores=detections.scores[image, found].double(),
                labels=detections.labels[image, found],
                rles=rles,
            )
        )
    return images


def coco_results(image: ImageDetections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """One image's detections in COCO's results format, boxes as x, y, width, height.

    Args:
        image: the detections.
        category_ids: of the labels 1..K.
    """
    origins, corners = image.boxes.split(2, dim=1)
    boxes = torch.cat([origins, corners - origins], dim=1).tolist()
    scores, labels = image.scores.tolist(), image.labels.tolist()
    results: list[dict[str, Any]] = [
        {
            "image_id": image.image_id,
            "category_id": category_ids[label - 1],
            "bbox": box,
            "score": score,
        }
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]
    if image.rles is not None:
        for result, rle in zip(results, image.rles, strict=True):
            result["segmentation"] = {"size": list(image.size), "counts": rle.decode()}
    return results
