"""The mask head: a small mask for each class of each RoI (Mask R-CNN, section 3 and figure 4).

B images, R RoIs, D detections, N RoIs of the batch, K classes, m mask side.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrcnn_lightning.models.heads.class_rows import num_rows, row_of
from mrcnn_lightning.models.heads.roi_features import RoIFeatures
from mrcnn_lightning.models.heads.roi_sampler import SampledRoIs
from mrcnn_lightning.models.roi_stage import RoIStage
from mrcnn_lightning.ops.losses import mask_loss
from mrcnn_lightning.ops.precision import at_least_float32
from mrcnn_lightning.structures import Detections, Targets

# Detections whose masks are predicted at a time.
_PER_PART = 512


class MaskHead(nn.Module):
    """A trunk, a 2x2 deconvolution that doubles the size, and a map for each class or one for all.

    Args:
        strides: of the levels that RoIs are cut from.
        roi_stage: what pooled features go through first.
        num_classes: K.
        pooler: makes the pooler from the strides.
        trunk: makes the trunk from `in_channels` and `size`; what it gives is a map.
        hidden: channels of the deconvolution; None is as many as the trunk gives.
        class_agnostic: whether all classes share one mask, or each has its own.
        targets: cuts what the head should say from ground truth, see `mask_targets`.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int],
        roi_stage: RoIStage,
        num_classes: int,
        pooler: Callable[..., Any],
        trunk: Callable[..., Any],
        hidden: int | None,
        class_agnostic: bool,
        targets: Callable[..., Tensor],
    ) -> None:
        super().__init__()
        self.roi_features = RoIFeatures(strides=strides, roi_stage=roi_stage, pooler=pooler)
        shape = {"in_channels": self.roi_features.out_channels, "size": self.roi_features.size}
        self.trunk = trunk(**shape)
        self.class_agnostic = class_agnostic
        self.targets = targets
        hidden = hidden or self.trunk.out_channels
        self.deconv = nn.ConvTranspose2d(self.trunk.out_channels, hidden, 2, stride=2)
        self.classifier = nn.Conv2d(hidden, num_rows(num_classes, class_agnostic=class_agnostic), 1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.001)
        for layer in (self.deconv, self.classifier):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, labels: Tensor
    ) -> Tensor:
        """Mask logits (N, m, m) of the classes `labels` (N,) in boxes (N, 4)."""
        pooled = self.roi_features(features, boxes, image_index)
        maps = F.relu(self.deconv(self.trunk(pooled)), inplace=True)  # (N, C, m, m)
        return self._logits(maps, row_of(labels, class_agnostic=self.class_agnostic))

    def _logits(self, maps: Tensor, row: Tensor) -> Tensor:
        """The classifier's maps of one row for each RoI, without those of all others."""
        assert self.classifier.bias is not None
        # Channels last, as the layer's weight is, so that its gradient is too: DDP's buckets are.
        weight = self.classifier.weight.permute(0, 2, 3, 1).flatten(1)[row]  # (N, C)
        bias = self.classifier.bias[row]
        cells = maps.permute(0, 2, 3, 1).flatten(1, 2)  # (N, m * m, C)
        logits = torch.baddbmm(bias[:, None, None], cells, weight[:, :, None])  # (N, m * m, 1)
        return logits.view(maps.shape[0], *maps.shape[2:])

    def loss(
        self, features: Sequence[Tensor], rois: SampledRoIs, targets: Targets
    ) -> dict[str, Tensor]:
        """`loss_mask`, over the positive RoIs alone."""
        assert targets.masks is not None and targets.mask_frames is not None
        image, roi = _positives(rois)
        boxes, labels = rois.boxes[image, roi], rois.labels[image, roi]
        matched_gt = rois.matched_gt[image, roi]
        # Compiled convolutions cannot go backward through no RoI at all.
        forward = self if boxes.shape[0] else self.forward
        logits = forward(features, boxes, image, labels)
        is_positive = labels > 0
        # Others that have a place in a graph may stand for an object that has no frame.
        unit = (torch.arange(4, device=boxes.device) >= 2).to(boxes.dtype)
        frames = torch.where(is_positive[:, None], targets.mask_frames[image, matched_gt], unit)
        wanted = self.targets(
            targets.masks[image, matched_gt],
            frames,
            torch.where(is_positive[:, None], boxes, unit),
            logits.shape[-1],
        )
        return {"loss_mask": mask_loss(logits, wanted, is_positive)}

    def predict(self, features: Sequence[Tensor], detections: Detections) -> Tensor:
        """Mask probabilities (B, D, m, m) of the detections' own classes, zero where padded."""

        def found(image: Tensor, place: Tensor) -> Tensor:
            boxes, labels = detections.boxes[image, place], detections.labels[image, place]
            probability = at_least_float32(self(features, boxes, image, labels)).sigmoid()
            return probability * (labels > 0)[:, None, None]

        # Of an image with thousands of detections all maps at once would not fit.
        num_images, num = detections.labels.shape
        if detections.labels.device.type != "cpu" or torch.compiler.is_compiling():
            # Masks of nothing cost a GPU less than a host that waits to see where there is none.
            # A program has the same parts for all batches.
            step = _PER_PART if torch.compiler.is_compiling() else max(1, _PER_PART // num_images)
            parts = [
                found(*_places(detections.labels[:, first : first + step], first))
                for first in range(0, num, step)
            ]
            return torch.cat([part.unflatten(0, (num_images, -1)) for part in parts], dim=1)
        places = torch.nonzero(detections.labels).split(_PER_PART)  # each (512, 2)
        parts = [found(*part.unbind(1)) for part in places]
        masks = parts[0].new_zeros(num_images, num, *parts[0].shape[1:])
        masks[detections.labels > 0] = torch.cat(parts)
        return masks


def _positives(rois: SampledRoIs) -> tuple[Tensor, Tensor]:
    """Image and place of the positive RoIs.

    In a graph, whose sizes are fixed, of all places that one may have.
    """
    if torch.compiler.is_compiling():
        return _places(rois.labels[:, : rois.most_positive], 0)
    # The host waits for their number: convolutions on all RoIs would cost more.
    image, place = torch.nonzero(rois.labels, as_tuple=True)
    return image, place


def _places(labels: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Image and place of each of (B, D), whose places are counted from `first`."""
    number = torch.arange(labels.numel(), device=labels.device)
    return number // labels.shape[1], number % labels.shape[1] + first
