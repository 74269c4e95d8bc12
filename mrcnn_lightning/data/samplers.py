"""Which images make which batch, on which rank.

N images, B images of an optimizer step.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Sampler

from mrcnn_lightning.ops.sampling import image_seed

# Stands for no image where an epoch's own order is seeded.
_ORDER = -1
# What an epoch's number grows by for an image each time that it comes again.
_AGAIN = 2**32


class TrainBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of one rank: shuffled, wide images apart from high ones, going on where it stands.

    Training is one endless stream of epochs, each a new order of all images of which the last
    N % B are left out. An image of factor r comes floor(r) or ceil(r) times, r in the mean over
    epochs, as Detectron2 rounds, but all epochs are equally long. In that order images wait for
    others of their orientation until a batch of one device is full (Detectron2): a step has wide
    and high batches, and its images are the same on any number of ranks and accumulated batches
    only where all have one orientation. A batch holds (epoch, index) of each image; where one comes
    again, its epoch is another number, by which it is augmented otherwise. An iteration starts
    after the images that training has seen, so that a resumed run goes on exactly, and is one epoch
    long.

    Args:
        image_sizes: (N, 2) height and width.
        factors: (N,) float64, how often an epoch shows an image in the mean.
        batch_size: B, over all ranks and accumulated batches.
        rank: of this process.
        world_size: processes.
        accumulate: batches of a rank in a step.
        seed: of the run.
        images_seen: tells how many images training has seen on all ranks.

    Attributes:
        repeated_steps: so many steps of the first epoch again and again, to the pixel; None for no
            such thing.
    """

    def __init__(
        self,
        image_sizes: Tensor,
        *,
        factors: Tensor,
        batch_size: int,
        rank: int,
        world_size: int,
        accumulate: int,
        seed: int,
        images_seen: Callable[[], int],
    ) -> None:
        self.is_wide = image_sizes[:, 1] > image_sizes[:, 0]  # a square is not (Detectron2)
        self.factors = factors
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.seed = seed
        self.images_seen = images_seen
        self.repeated_steps: int | None = None
        self.num_drawn = int(factors.sum() + 1e-6)  # a sum of thirds may be a little too small
        self.num_steps = self.num_drawn // batch_size

    def __len__(self) -> int:
        return self.num_steps * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return islice(self._from(self.images_seen() // self.batch_size), len(self))

    def _from(self, step: int) -> Iterator[list[tuple[int, int]]]:
        if self.repeated_steps is not None:
            step %= self.repeated_steps
        epoch, first = divmod(step, self.num_steps)
        while True:
            steps = self._steps(epoch)
            keys = torch.stack([epoch + _AGAIN * _times_before(steps), steps], dim=2)
            for images in keys[first:]:
                parts = images.view(self.accumulate, self.world_size, -1, 2)
                for part in parts[:, self.rank].tolist():
                    yield [(of_epoch, index) for of_epoch, index in part]
            epoch, first = epoch + 1, 0

    def _steps(self, epoch: int) -> Tensor:
        """The images of each step of an epoch, (steps, B), one device's batch after the other.

        At most one batch, the last of the epoch, has wide and high images.
        """
        generator = torch.Generator().manual_seed(image_seed(self.seed, epoch, _ORDER))
        order = torch.randperm(len(self.is_wide), generator=generator)
        if (self.factors != 1).any():
            order = self._drawn(order, generator)
        order = order[: self.num_steps * self.batch_size]
        is_wide, size = self.is_wide[order], self.batch_size // (self.world_size * self.accumulate)
        groups = [torch.nonzero(of_group)[:, 0] for of_group in (is_wide, ~is_wide)]  # places
        whole = [len(group) // size * size for group in groups]
        full = torch.cat([group[:end] for group, end in zip(groups, whole, strict=True)])
        rest = torch.cat([group[end:] for group, end in zip(groups, whole, strict=True)])
        batches = full.view(-1, size)
        batches = batches[batches[:, -1].argsort()]  # as soon as the last image is there
        return order[torch.cat([batches.flatten(), rest])].view(-1, self.batch_size)

    def _drawn(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """The images of an epoch, each about as often as its factor says, shuffled.

        Factors are laid end to end in a random order, and every whole number, moved by one random
        offset, draws the image that it falls on.
        """
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        points = torch.arange(self.num_drawn) + offset
        drawn = torch.searchsorted(self.factors[order].cumsum(0), points, right=True)
        drawn = drawn.clamp(max=len(order) - 1)
        return order[drawn[torch.randperm(len(drawn), generator=generator)]]


def _times_before(steps: Tensor) -> Tensor:
    """How often the image of each place came before, of the same shape."""
    images, places = steps.flatten().sort(stable=True)
    times = torch.empty_like(images)
    times[places] = torch.arange(len(images)) - torch.searchsorted(images, images)
    return times.view_as(steps)


class EvalBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of one rank, each of images of one padded size, every image in one batch.

    Batches are made before they are dealt, so that an image has the same neighbours on any number
    of ranks. A rank that would get none repeats one; the metric counts an image once.

    Args:
        canvas_sizes: (N, 2) padded height and width.
        batch_size: of images.
        rank: of this process.
        world_size: processes.
    """

    def __init__(
        self, canvas_sizes: Tensor, *, batch_size: int, rank: int, world_size: int
    ) -> None:
        groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for index, size in enumerate(canvas_sizes.tolist()):
            groups.setdefault(tuple(size), []).append((0, index))
        batches = [
            group[start : start + batch_size]
            for group in groups.values()
            for start in range(0, len(group), batch_size)
        ]
        self.batches = batches[rank::world_size] or batches[:1]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)
