"""How often an epoch shows each training image.

N images, P pairs of an image and a class that is in it, K classes.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.ops.sampling import image_seed
from mrcnn_lightning.user_error import UserError

# Stands for no image where a part of the images is drawn.
_PART = -2

# Of the pairs' images (P,) in 0..N - 1 and labels (P,), and N: the expected times (N,) an epoch.
Sampling = Callable[[Tensor, Tensor, int], Tensor]


def uniform(images: Tensor, labels: Tensor, num_images: int) -> Tensor:
    """Every image once."""
    return torch.ones(num_images, dtype=torch.float64)


def repeat_factor(images: Tensor, labels: Tensor, num_images: int, *, threshold: float) -> Tensor:
    """Images with rare classes more often: max(1, sqrt(threshold / f)) for the rarest of them.

    f is the part of the images that has the class (Gupta et al. 2019, LVIS, section on repeat
    factor sampling; Detectron2's RepeatFactorTrainingSampler). An epoch grows accordingly.

    Raises:
        UserError: the threshold is no part.
    """
    if not 0 < threshold <= 1:
        raise UserError(f"data.sampling.threshold={threshold} must be above 0 and at most 1")
    frequency = torch.bincount(labels).double() / num_images
    of_pairs = (threshold / frequency[labels]).sqrt()
    return uniform(images, labels, num_images).scatter_reduce(0, images, of_pairs, "amax")


def class_balanced(images: Tensor, labels: Tensor, num_images: int) -> Tensor:
    """As if a class were drawn first, and then one of its images (Shen et al. 2016).

    An epoch stays as long; images without objects are not seen.
    """
    numbers = torch.bincount(labels).double()
    share = num_images / int((numbers > 0).sum().clamp(min=1))
    times = torch.zeros(num_images, dtype=torch.float64)
    return times.scatter_add(0, images, share / numbers[labels])


def images_and_labels(annotations: Annotations, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of an image and a class that is in it, once each, crowds aside.

    Args:
        annotations: of a set.
        kept: (N,) the images that are trained on, in rising order.

    Returns:
        Images (P,) as places in `kept`, and labels (P,).
    """
    of_objects = torch.arange(len(annotations)).repeat_interleave(annotations.num_objects())
    place = torch.full((len(annotations),), -1)
    place[kept] = torch.arange(len(kept))
    counts = (place[of_objects] >= 0) & ~annotations.crowd
    pairs = torch.stack([place[of_objects[counts]], annotations.labels[counts]])
    images, labels = pairs.unique(dim=1)
    return images, labels


def part_of(kept: Tensor, limit: int | float, *, seed: int) -> Tensor:
    """So many of the images, or such a share of them; a smaller part lies within a larger one.

    Args:
        kept: (N,) images.
        limit: a whole number of images, or a share above 0 and at most 1.
        seed: of the run; others give other parts.

    Raises:
        UserError: there are not so many, or none would be left.
    """
    is_share = isinstance(limit, float)
    num = math.ceil(limit * len(kept) - 1e-9) if is_share else limit
    if not 1 <= num <= len(kept) or (is_share and limit <= 0):
        raise UserError(
            f"data.limit={limit} must be a number of images from 1 to {len(kept)}, which is how "
            "many there are, or a share such as 0.1"
        )
    generator = torch.Generator().manual_seed(image_seed(seed, 0, _PART))
    chosen = torch.randperm(len(kept), generator=generator)[:num]
    return kept[chosen.sort().values]
