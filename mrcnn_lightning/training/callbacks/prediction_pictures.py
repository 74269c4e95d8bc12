"""Pictures of predictions beside ground truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import resize

from mrcnn_lightning.inference.drawing import draw_objects, side_by_side
from mrcnn_lightning.inference.ground_truth import draw_ground_truth
from mrcnn_lightning.inference.stretching import as_rgb
from mrcnn_lightning.results.pasting import resized_crops
from mrcnn_lightning.structures import Batch, Detections
from mrcnn_lightning.training.callbacks.show import logged_step, show_picture
from mrcnn_lightning.training.task import DetectionTask


class PredictionPictures(Callback):
    """Draws predictions beside ground truth: to the run's folder, and to loggers that show images.

    Args:
        folder: where the pictures are written, replaced at every validation.
        min_side: pixels; an image whose shorter side has less is enlarged before it is drawn on.
        num_images: how many, the first of the validation set.
        min_score: less confident detections are not drawn.
        bands: which are shown of images that are not RGB, see `as_rgb`.
    """

    def __init__(
        self,
        *,
        folder: str,
        num_images: int,
        min_score: float,
        min_side: int,
        bands: Sequence[int] | None,
    ) -> None:
        self.folder = Path(folder)
        self.num_images = num_images
        self.min_score = min_score
        self.min_side = min_side
        self.bands = bands
        self._pictures: list[Image.Image] = []

    def on_validation_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Start anew."""
        self._pictures = []

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw what is still wanted."""
        assert isinstance(pl_module, DetectionTask)
        if trainer.is_global_zero and not trainer.sanity_checking:
            for image in range(min(len(batch), self.num_images - len(self._pictures))):
                names = pl_module.model.class_names
                x1, y1, x2, y2 = (int(side) for side in batch.windows[image].tolist())
                pixels = as_rgb(batch.images[image, :, y1:y2, x1:x2].cpu(), self.bands)
                picture = _picture(
                    pixels,
                    batch,
                    outputs["detections"],
                    image,
                    names,
                    self.min_score,
                    self.min_side,
                )
                self._pictures.append(picture)

    def on_validation_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Write and log the pictures."""
        step = logged_step(trainer)
        for number, picture in enumerate(self._pictures):
            name = f"val/picture_{number:02d}"
            show_picture(trainer, name, picture, step=step, folder=self.folder)


def _picture(
    pixels: Tensor,
    batch: Batch,
    detections: Detections,
    image: int,
    class_names: list[str],
    min_score: float,
    min_side: int,
) -> Image.Image:
    """Ground truth on the left, predictions on the right, on an image's pixels in RGB."""
    x1, y1, x2, y2 = (int(side) for side in batch.windows[image].tolist())
    origin = torch.tensor([x1, y1, x1, y1])
    scale = max(1.0, min_side / min(y2 - y1, x2 - x1))
    # Enlarged first, so that lines and the edges of masks are sharp.
    size = (round((y2 - y1) * scale), round((x2 - x1) * scale))
    pixels = pixels if scale == 1 else resize(pixels, list(size))
    found = (detections.scores[image] >= min_score) & (detections.labels[image] > 0)
    pred_boxes, pred_masks = (detections.boxes[image, found].cpu() - origin) * scale, None
    if detections.masks is not None:
        pred_masks = resized_crops(detections.masks[image, found].cpu(), pred_boxes, size)
    assert batch.targets is not None
    truth = draw_ground_truth(pixels, batch.targets, image, class_names, origin=origin, scale=scale)
    prediction = draw_objects(
        pixels,
        boxes=pred_boxes,
        labels=detections.labels[image, found],
        class_names=class_names,
        scores=detections.scores[image, found],
        masks=pred_masks,
    )
    return side_by_side(truth, prediction)
