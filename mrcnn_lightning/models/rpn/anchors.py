"""Anchors: where the boxes of the RPN start from, and which of them it learns from.

B images, L levels, A anchors of all levels, a anchors a cell, S sampled anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mrcnn_lightning.models.matching import match_targets, require_sample
from mrcnn_lightning.ops.anchors import anchor_grid, cell_anchors
from mrcnn_lightning.ops.boxes import has_area
from mrcnn_lightning.ops.matching import IGNORED, BestMatches, Match
from mrcnn_lightning.ops.sampling import SampledIndices, Stage, random_keys, sample
from mrcnn_lightning.structures import Targets
from mrcnn_lightning.user_error import UserError


class Anchors:
    """Anchors of a few sizes and shapes on every level.

    Args:
        sizes: for each level, the sides of its anchors in pixels.
        aspect_ratios: height over width.
        offset: where in its cell an anchor is centred: 0 its corner, 0.5 its middle.
        rounded: torchvision's rule, which its published weights were trained with: the anchors'
            corners are whole pixels, and a level's stride is the canvas divided by the level's
            size and rounded down (61 instead of 64 for P6 at 800 pixels).
    """

    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        offset: float,
        rounded: bool,
    ) -> None:
        per_cell = {len(level_sizes) for level_sizes in sizes}
        if len(per_cell) != 1 or not all(sizes) or not aspect_ratios:
            raise UserError(
                f"model.rpn.anchors.sizes={sizes} aspect_ratios={aspect_ratios}: every level needs "
                "as many sizes, at least one of them and of the ratios"
            )
        self.sizes = sizes
        self.aspect_ratios = aspect_ratios
        self.offset = offset
        self.rounded = rounded
        self.num_per_cell = per_cell.pop() * len(aspect_ratios)
        self._on_device: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}

    def __call__(
        self, features: Sequence[Tensor], strides: Sequence[int], image_size: tuple[int, int]
    ) -> Tensor:
        """All levels' anchors (A, 4).

        Args:
            features: L maps (B, C, height, width).
            strides: of the levels.
            image_size: height and width of the canvas.
        """
        sizes = [(level.shape[2], level.shape[3]) for level in features]
        steps = [(stride, stride) for stride in strides]
        if self.rounded:
            steps = [(image_size[0] // height, image_size[1] // width) for height, width in sizes]
        dtype = torch.promote_types(features[0].dtype, torch.float32)
        cells = self.cells(features[0].device, dtype)
        return anchor_grid(cells, sizes, steps, offset=self.offset)

    @torch.inference_mode(False)
    def cells(self, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """The anchors of one cell of each level, copied to the device once."""
        if (device, dtype) in self._on_device:
            return self._on_device[device, dtype]
        cells = [cell_anchors(sizes, self.aspect_ratios) for sizes in self.sizes]
        if self.rounded:
            cells = [cell.round() for cell in cells]
        cells = [cell.to(dtype).to(device) for cell in cells]
        if not torch.compiler.is_compiling():  # what a graph computes is no tensor yet
            self._on_device[device, dtype] = cells
        return cells


@dataclass(kw_only=True)
class AnchorSampler:
    """Chooses the anchors to learn from (Faster R-CNN, sections 3.1.2 and 3.1.3).

    An object that no anchor touches (IoU 0), one outside the image or without area, has no
    positive anchor, whatever `best_matches` is. (In torchvision and Detectron2 all anchors tie at
    its best IoU of 0, and all become positive.)

    Args:
        num_anchors: sampled anchors an image.
        positive_fraction: at most this part of them is positive.
        positive_iou: an anchor is positive at this IoU with an object or above.
        strictly_above: whether it must be above.
        negative_iou: an anchor is negative below this IoU with all objects.
        best_matches: which of the anchors that an object overlaps most are positive whatever
            their IoU: `all` that tie, the `first` or `none`.
        inside_only: whether anchors that are not wholly inside the image are left out.
        crowd_iou: anchors that overlap a crowd by this IoU or more are not negative; None is all
            the same.

    Raises:
        UserError: a number is out of range.
    """

    num_anchors: int
    positive_fraction: float
    positive_iou: float
    strictly_above: bool
    negative_iou: float
    best_matches: BestMatches
    inside_only: bool
    crowd_iou: float | None

    def __post_init__(self) -> None:
        require_sample("num_anchors", self.num_anchors, self.positive_fraction)
        self.best_matches = BestMatches(self.best_matches)

    def __call__(
        self, anchors: Tensor, targets: Targets, windows: Tensor, seeds: Tensor
    ) -> tuple[SampledIndices, Tensor]:
        """The sample, and the object (B, S) that each sampled anchor overlaps most.

        Args:
            anchors: (A, 4).
            targets: of the batch.
            windows: (B, 4), the images.
            seeds: (B,), the images'.
        """
        matched_gt, label = self.label(anchors, targets, windows)
        slots = torch.arange(len(anchors), device=anchors.device)
        random = random_keys(seeds, Stage.ANCHORS, slots)
        chosen = sample(
            label, random, num=self.num_anchors, positive_fraction=self.positive_fraction
        )
        return chosen, matched_gt.gather(1, chosen.indices)

    def label(self, anchors: Tensor, targets: Targets, windows: Tensor) -> Match:
        """The object (B, A) that each anchor overlaps most, and what the anchor is (B, A)."""
        inside = None
        if self.inside_only:
            inside = (anchors[:, :2] >= windows[:, None, :2]) & (
                anchors[:, 2:] <= windows[:, None, 2:]
            )  # (B, A, 2)
            inside = inside.all(dim=2)
        matched_gt, label = match_targets(
            targets,
            anchors,
            positive_iou=self.positive_iou,
            negative_iou=self.negative_iou,
            best_matches=self.best_matches,
            crowd_iou=self.crowd_iou,
            strictly_above=self.strictly_above,
            eligible=inside,
        )
        # A batch may be filled up with images of no size.
        return Match(matched_gt, torch.where(has_area(windows)[:, None], label, IGNORED))
