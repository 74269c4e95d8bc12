"""Detections of single images, in the pixels of their files.

B images, D padded detections an image, N detections of one image, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mrcnn_lightning.ops import boxes as box_ops
from mrcnn_lightning.results.pasting import Paste
from mrcnn_lightning.results.rle import decode_masks, encode_masks
from mrcnn_lightning.structures import Batch, Detections
from mrcnn_lightning.user_error import UserError


@dataclass
class ImageDetections:
    """What the model found in one image, best first, on the host and in the image's own pixels."""

    image_id: int
    size: tuple[int, int]  # height, width
    boxes: Tensor  # (N, 4) float64
    scores: Tensor  # (N,) float64
    labels: Tensor  # (N,) int64, 1..K
    rles: list[bytes] | None  # N masks of the whole image as COCO's compressed run lengths

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, min_score: float) -> "ImageDetections":
        """The detections that are this confident or more."""
        kept = self.scores >= min_score
        rles = self.rles and [rle for rle, is_kept in zip(self.rles, kept, strict=True) if is_kept]
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            rles=rles,
        )

    def masks(self) -> Tensor:
        """The masks (N, height, width) bool.

        Raises:
            UserError: the model has no masks.
        """
        return decode_masks(self._rles(), self.size)

    def to_coco(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """In COCO's results format: boxes as x, y, width, height.

        Args:
            category_ids: of the classes 1..K.
        """
        results = []
        origins, ends = self.boxes.split(2, dim=1)
        boxes = torch.cat([origins, ends - origins], dim=1).tolist()
        for index, (label, score, box) in enumerate(
            zip(self.labels.tolist(), self.scores.tolist(), boxes, strict=True)
        ):
            result: dict[str, Any] = {
                "image_id": self.image_id,
                "category_id": category_ids[label - 1],
                "bbox": box,
                "score": score,
            }
            if self.rles is not None:
                counts = self.rles[index].decode()
                result["segmentation"] = {"size": list(self.size), "counts": counts}
            results.append(result)
        return results

    def to_supervision(self) -> Any:
        """As `supervision.Detections`, whose class ids are 0..K-1; `pip install supervision`.

        Raises:
            UserError: it is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError("supervision is not installed: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy() - 1,
            mask=None if self.rles is None else self.masks().numpy(),
        )

    def _rles(self) -> list[bytes]:
        if self.rles is None:
            raise UserError("these detections have no masks: the model has no mask head")
        return self.rles


def per_image(detections: Detections, batch: Batch, paste: Paste) -> list[ImageDetections]:
    """Each image's detections on the host, in its own pixels, with masks run-length encoded.

    Boxes without area, of objects that the image's edge has cut to nothing, are left out here and
    not in the selector: they have taken places among the best (as in Detectron2).

    Args:
        detections: of the batch.
        batch: where they were found.
        paste: how masks are pasted, see `resized_crops`.
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
            rles = encode_masks(masks, boxes[image, found], (height, width), paste)
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
