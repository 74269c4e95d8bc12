"""A contact sheet of the images that training starts with."""

import logging
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torchvision.transforms.functional import resize

from mrcnn_lightning.data.datamodule import COCODataModule
from mrcnn_lightning.inference.drawing import LONGER_SIDE, contact_sheet
from mrcnn_lightning.inference.ground_truth import draw_ground_truth
from mrcnn_lightning.inference.stretching import as_rgb
from mrcnn_lightning.structures import Batch
from mrcnn_lightning.training.callbacks.show import logged_step, show_picture

_log = logging.getLogger(__name__)


class Preview(Callback):
    """Draws what the network will see: augmented images on their canvas, boxes, names and masks.

    How many is the data's `preview`. They are the first of this process, and training sees them
    all the same.

    Args:
        folder: where preview.png is written.
        bands: which are shown of images that are not RGB, see `as_rgb`.
    """

    def __init__(self, *, folder: str, bands: Sequence[int] | None) -> None:
        self.folder = Path(folder)
        self.bands = bands

    def on_fit_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Draw before anything else is done, on one process."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, COCODataModule) or not data.preview or not trainer.is_global_zero:
            return
        pictures = (
            _picture(batch, image, data.class_names, self.bands)
            for batch in data.preview_batches()
            for image in range(len(batch))
        )
        drawn = list(islice(pictures, data.preview))
        sheet = contact_sheet(drawn, columns=math.ceil(math.sqrt(len(drawn))))
        show_picture(trainer, "preview", sheet, step=logged_step(trainer), folder=self.folder)
        _log.info("%s shows what training starts with", self.folder / "preview.png")


def _picture(
    batch: Batch, image: int, class_names: Sequence[str], bands: Sequence[int] | None
) -> Image.Image:
    """An image on its canvas, whose padding is black."""
    assert batch.targets is not None
    x1, y1, x2, y2 = (int(side) for side in batch.windows[image].tolist())
    height, width = batch.images.shape[2:]
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    pixels[:, y1:y2, x1:x2] = as_rgb(batch.images[image, :, y1:y2, x1:x2], bands)
    # Before it is drawn on, so that lines and names are sharp.
    scale = LONGER_SIDE / max(height, width)
    pixels = resize(pixels, [max(1, round(height * scale)), max(1, round(width * scale))])
    origin = torch.zeros(4)
    return draw_ground_truth(pixels, batch.targets, image, class_names, origin=origin, scale=scale)
