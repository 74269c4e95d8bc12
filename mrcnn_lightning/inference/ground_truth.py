"""Pictures of the ground truth of a batch.

G padded objects an image, M mini-mask side.
"""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from mrcnn_lightning.inference.drawing import draw_objects
from mrcnn_lightning.results.pasting import resized_crops
from mrcnn_lightning.structures import Targets


def draw_ground_truth(
    pixels: Tensor,
    targets: Targets,
    image: int,
    class_names: Sequence[str],
    *,
    origin: Tensor,
    scale: float,
) -> Image.Image:
    """A picture of the objects that an image of a batch teaches: no crowds.

    Args:
        pixels: (3, H, W) uint8, of the image or a part of it, enlarged or shrunk by `scale`.
        targets: of the batch.
        image: which of the batch.
        class_names: of the classes 1..K.
        origin: (4,), where `pixels` starts on the canvas: x, y, x, y.
        scale: pixels of `pixels` per pixel of the canvas.
    """
    real = targets.trainable[image]
    masks = None
    if targets.masks is not None and targets.mask_frames is not None:
        frames = (targets.mask_frames[image, real].cpu() - origin) * scale
        size = (pixels.shape[1], pixels.shape[2])
        masks = resized_crops(targets.masks[image, real].float().cpu(), frames, size)
    return draw_objects(
        pixels,
        boxes=(targets.boxes[image, real].cpu() - origin) * scale,
        labels=targets.labels[image, real],
        class_names=class_names,
        masks=masks,
    )
