"""The losses of a training step and their gradients, as one graph for each of a few shapes.

B images, G objects.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.structures import Batch, map_tensors
from mrcnn_lightning.user_error import UserError

# Graphs that are made, minutes each; batches of more shapes go without.
MOST_GRAPHS = 12
# Places for an image's objects; more than the last have as many as a power of two.
_PLACES = (64, 256)


class CompiledStep:
    """`Detector.loss` as `torch.compile` makes it whole, on a GPU replayed as a CUDA graph.

    Sizes in a graph are fixed, so that no number is read on the host: objects are padded to a few
    sizes, and a batch of fewer images than others is filled up with images of no size, of which
    nothing is sampled (but where batch norms are trained, in whose statistics they would count).

    Args:
        model: the detector.
    """

    def __init__(self, model: Detector) -> None:
        self.model = model
        # It looks for CUDA graphs by itself where there is a GPU.
        self._loss = torch.compile(
            model.loss, fullgraph=True, dynamic=False, mode="reduce-overhead"
        )
        self._num_images = 0
        self._shapes: set[tuple[int, ...]] = set()
        self._without: set[tuple[int, ...]] = set()  # shapes that no graph could be made of
        self._has_warned = False

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """As `Detector.loss`; the losses are the caller's, no graph writes into them again.

        Raises:
            UserError: no graph can be made of the model.
        """
        batch = self._filled(batch)
        assert batch.targets is not None
        shape = (*batch.images.shape, batch.targets.boxes.shape[1])
        if shape in self._without:  # trying takes minutes
            return self.model.loss(batch)
        if shape not in self._shapes:
            if len(self._shapes) >= MOST_GRAPHS:
                height, width = shape[2:4]
                self._warn_once(
                    f"has made {MOST_GRAPHS} graphs, which is all: a batch of {len(batch)} images "
                    f"of {height}x{width} pixels with places for {shape[4]} objects goes without, "
                    "and so do all further shapes; with data/canvas=fixed there are few"
                )
                return self.model.loss(batch)
            self.model.copy_constants(batch.images.device)
        torch.compiler.cudagraph_mark_step_begin()
        # DDP would cut the graph where its buckets end, and its hooks work without that.
        settings = {"optimize_ddp": False, "recompile_limit": 2 * MOST_GRAPHS}
        try:
            with torch._dynamo.config.patch(settings):
                losses = self._loss(batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            if not self._shapes:
                raise UserError(
                    f"task.compiled=step can make no graph of this model ({reason}): say "
                    "task.compiled=parts"
                ) from error
            self._without.add(shape)
            self._warn_once(f"goes without a graph for some batches: {reason}")
            return self.model.loss(batch)
        self._shapes.add(shape)
        return {name: loss.clone() for name, loss in losses.items()}

    def zero_grad(self, optimizer: Optimizer) -> None:
        """Set gradients to zero, before the backward pass, in memory that is not the graph's.

        The graph writes into its own again in the next step, and would change what is added up.
        """
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.zero_grad(set_to_none=False)

    def _filled(self, batch: Batch) -> Batch:
        """The batch with as many images as the largest so far, and with places for more objects."""
        assert batch.targets is not None
        num_images, most = batch.targets.boxes.shape[:2]
        places = next((each for each in _PLACES if each >= most), 1 << (most - 1).bit_length())
        targets = map_tensors(batch.targets, lambda each: _padded(each, 1, places))
        batch = replace(batch, targets=targets)
        norms = (each for each in self.model.modules() if isinstance(each, _BatchNorm))
        if any(norm.training for norm in norms):
            return batch
        self._num_images = max(self._num_images, num_images)
        return map_tensors(batch, lambda each: _padded(each, 0, self._num_images))

    def _warn_once(self, what: str) -> None:
        if not self._has_warned:
            rank_zero_warn(f"task.compiled=step {what}")
            self._has_warned = True


def _padded(values: Tensor, dim: int, size: int) -> Tensor:
    """With zeros, to a size along a dimension."""
    missing = size - values.shape[dim]
    if missing == 0:
        return values
    return F.pad(values, (0, 0) * (values.dim() - 1 - dim) + (0, missing))
