"""Mask R-CNN, or Faster R-CNN where there is no mask head: the parts put together.

B images, D detections.
"""

import os
import shutil
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mrcnn_lightning.models.backbones.backbone import Backbone
from mrcnn_lightning.models.heads.roi_sampler import RoISampler
from mrcnn_lightning.models.protocols import BoxHead, MaskHead, Neck
from mrcnn_lightning.models.roi_stage import RoIStage
from mrcnn_lightning.models.rpn.proposals import RPNOutput
from mrcnn_lightning.models.rpn.rpn import RPN
from mrcnn_lightning.results.pasting import Paste
from mrcnn_lightning.structures import Batch, Detections
from mrcnn_lightning.user_error import UserError, built


class Detector(nn.Module):
    """Backbone, neck, RPN, RoI sampler and heads.

    Args:
        class_names: of the classes 1..K.
        backbone: images to maps.
        neck: makes the neck from the backbone's `in_channels` and `strides`.
        rpn: makes the RPN from the neck's `in_channels` and `strides`.
        roi_sampler: which RoIs the heads learn from.
        box_head: makes the head from `strides`, `roi_stage` and `num_classes`.
        mask_head: likewise; None makes it Faster R-CNN.
        paste: how masks are pasted into images, see `resized_crops`.
        pad_first: whether the canvas outside the image is zero before normalisation
            (Matterport's) instead of after it.
        init: gives layers the weights that they start with, see `initial_weights`.

    Raises:
        UserError: the backbone's stage for RoIs does not fit the neck, or there are too few
            proposals for the detections.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        backbone: Backbone,
        neck: Callable[..., Neck],
        rpn: Callable[..., RPN],
        roi_sampler: RoISampler,
        box_head: Callable[..., BoxHead],
        mask_head: Callable[..., MaskHead] | None,
        paste: Paste,
        pad_first: bool,
        init: Callable[["Detector"], None],
    ) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.backbone = backbone
        maps = {"in_channels": backbone.out_channels, "strides": backbone.strides}
        self.neck: Neck = built(neck, "model.neck", **maps)
        levels = {"in_channels": self.neck.out_channels, "strides": self.neck.strides}
        self.rpn: RPN = built(rpn, "model.rpn", **levels)
        self.roi_sampler = roi_sampler
        width = self.neck.out_channels
        stage = backbone.roi_stage or RoIStage(nn.Identity(), width, width, stride=1)
        if stage.in_channels != width:
            raise UserError(
                f"the backbone has a stage for RoIs (roi_layer) that takes {stage.in_channels} "
                f"channels, and the neck gives {width}: such a backbone goes with "
                "model=mask_rcnn_d2_c4"
            )
        shape = {
            "strides": self.neck.roi_strides,
            "roi_stage": stage,
            "num_classes": len(class_names),
        }
        self.box_head: BoxHead = built(box_head, "model.box_head", **shape)
        self.mask_head: MaskHead | None = None
        if mask_head is not None:
            self.mask_head = built(mask_head, "model.mask_head", **shape)
        _require_proposals(self.rpn, self.box_head, len(class_names))
        self.paste = paste
        self.pad_first = pad_first
        init(self)
        # Faster convolutions on CPUs and on GPUs alike; the images come in this format too.
        self.to(memory_format=torch.channels_last)

    def compile_parts(self) -> None:
        """Have `torch.compile` make kernels for what consists of layers; weights keep their names.

        A part is compiled for its first size, and once more for all others; training, evaluation
        and batches of one image have kernels of their own.

        Raises:
            UserError: there is no C++ compiler.
        """
        compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
        if not any(shutil.which(name) for name in compilers):
            raise UserError(
                "torch.compile (task.compiled or --compile) needs a C++ compiler, and none is on "
                "the PATH: install g++, or leave it out"
            )
        for part in (self.backbone, self.neck, self.rpn, self.box_head):
            part.compile()
        if self.mask_head is not None:
            self.mask_head.compile(dynamic=True)  # the number of its RoIs is another in each step

    def copy_constants(self, device: torch.device) -> None:
        """Copy to a device, once, what graphs take as given."""
        dtype = next(self.parameters()).dtype
        self.backbone.pixels.constants(device, dtype)
        self.rpn.anchors.cells(device, torch.promote_types(dtype, torch.float32))

    def normalize(self, batch: Batch) -> Tensor:
        """Images (B, channels, H, W) as the backbone wants them, with zeros outside each."""
        height, width = batch.images.shape[2:]
        x1, y1, x2, y2 = batch.windows[:, :, None, None].unbind(1)  # (B, 1, 1)
        column = torch.arange(width, device=batch.images.device)
        row = torch.arange(height, device=batch.images.device)[:, None]
        inside = (column >= x1) & (column < x2) & (row >= y1) & (row < y2)  # (B, H, W)
        images = torch.where(inside[:, None], batch.images, 0) if self.pad_first else batch.images
        images = self.backbone.pixels.normalize(images, dtype=next(self.parameters()).dtype)
        images = images if self.pad_first else torch.where(inside[:, None], images, 0.0)
        return images.contiguous(memory_format=torch.channels_last)

    def features(self, batch: Batch) -> list[Tensor]:
        """The pyramid of a batch."""
        self.copy_constants(batch.images.device)
        levels: list[Tensor] = self.neck(self.backbone(self.normalize(batch)))
        return levels

    def loss(self, batch: Batch, features: list[Tensor] | None = None) -> dict[str, Tensor]:
        """The losses, each a scalar: two of the RPN, two a stage of the box head, and `loss_mask`.

        Args:
            batch: with targets.
            features: of the batch, if they are known already.
        """
        assert batch.targets is not None
        features = self.features(batch) if features is None else features
        output: RPNOutput = self.rpn(features, tuple(batch.images.shape[2:]))
        losses = self.rpn.loss(output, batch)
        proposals = self.rpn.propose(output, batch, training=True)
        rois = self.roi_sampler(proposals, batch.targets, batch.seeds)
        losses |= self.box_head.loss(features, rois, batch.targets, batch.windows)
        if self.mask_head is not None:
            losses |= self.mask_head.loss(features, rois, batch.targets)
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch, features: list[Tensor] | None = None) -> Detections:
        """What is in the images, best first.

        Args:
            batch: targets are not looked at.
            features: of the batch, if they are known already.
        """
        features = self.features(batch) if features is None else features
        output: RPNOutput = self.rpn(features, tuple(batch.images.shape[2:]))
        proposals = self.rpn.propose(output, batch, training=False)
        detections = self.box_head.predict(
            features, proposals.boxes, proposals.valid, batch.windows
        )
        if self.mask_head is not None:
            detections.masks = self.mask_head.predict(features, detections)
        return detections


def _require_proposals(rpn: RPN, box_head: BoxHead, num_classes: int) -> None:
    """Refuse more detections than there are boxes that could become some."""
    proposals, detections = rpn.selector.num_proposals, box_head.selector.num_detections
    if detections > proposals * num_classes:
        raise UserError(
            f"model.box_head.selector.num_detections={detections} is more than can be made of "
            f"model.rpn.selector.num_proposals={proposals} for {num_classes} classes: raise that "
            f"to {detections} or more, and pre_nms_topk beside it"
        )
