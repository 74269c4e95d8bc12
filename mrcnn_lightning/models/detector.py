"""Mask R-CNN, or Faster R-CNN where there is no mask head: the parts put together.

B images, D detections.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mrcnn_lightning.models.backbones import Backbone
from mrcnn_lightning.models.roi_sampler import RoISampler
from mrcnn_lightning.ops.masks import Crops
from mrcnn_lightning.structures import Batch, Detections


class Detector(nn.Module):
    """Backbone, neck, RPN, RoI sampler and heads.

    Args:
        class_names: of the classes 1..K.
        backbone: images to maps.
        neck: makes the neck from the backbone's `in_channels` and `strides`.
        rpn: makes the RPN from the neck's `in_channels` and `strides`.
        roi_sampler: which RoIs the heads learn from.
        box_head: makes the head from `in_channels`, `strides`, `num_classes` and `roi_stage`.
        mask_head: likewise; None makes it Faster R-CNN.
        paste: how masks are pasted into images, see `resized_crops`.
        channel_order: RGB, or BGR for weights of Caffe's models.
        pixel_mean: of the channels in their order, in 0..255, subtracted.
        pixel_std: of the channels, divided by.
        pad_value: of the channels, what the canvas holds outside the image after normalisation.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        backbone: Backbone,
        neck: Callable[..., Any],
        rpn: Callable[..., Any],
        roi_sampler: RoISampler,
        box_head: Callable[..., Any],
        mask_head: Callable[..., Any] | None,
        paste: Crops,
        channel_order: Literal["RGB", "BGR"],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        pad_value: Sequence[float],
    ) -> None:
        super().__init__()
        self.class_names = list(class_names)
        self.backbone = backbone
        self.neck = neck(in_channels=backbone.out_channels, strides=backbone.strides)
        self.rpn = rpn(in_channels=self.neck.out_channels, strides=self.neck.strides)
        self.roi_sampler = roi_sampler
        in_channels = (
            self.neck.out_channels if backbone.roi_layer is None else backbone.roi_channels
        )
        shape = {
            "in_channels": in_channels,
            "strides": self.neck.roi_strides,
            "num_classes": len(class_names),
            "roi_stage": None if backbone.roi_layer is None else backbone.roi_stage,
        }
        self.box_head = box_head(**shape)
        self.mask_head = None if mask_head is None else mask_head(**shape)
        self.paste = paste
        if channel_order not in ("RGB", "BGR"):
            raise ValueError(f"model.channel_order={channel_order} is neither RGB nor BGR")
        self.channel_order = channel_order
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std
        self.pad_value = pad_value
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        # Faster convolutions on CPUs and on GPUs alike; the images come in this format too.
        self.to(memory_format=torch.channels_last)

    def normalize(self, batch: Batch) -> Tensor:
        """Images (B, 3, H, W) with the mean taken off, and the pad value outside each image."""
        images = batch.images.flip(1) if self.channel_order == "BGR" else batch.images
        mean, std, pad_value = self._pixels(images.device)
        images = (images.to(mean.dtype) - mean) / std
        height, width = images.shape[2:]
        x1, y1, x2, y2 = batch.windows[:, :, None, None].unbind(1)  # (B, 1, 1)
        column = torch.arange(width, device=images.device)
        row = torch.arange(height, device=images.device)[:, None]
        inside = (column >= x1) & (column < x2) & (row >= y1) & (row < y2)  # (B, H, W)
        images = torch.where(inside[:, None], images, pad_value)
        return images.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode(False)
    def _pixels(self, device: torch.device) -> Tensor:
        """Mean, deviation and pad value (3, 3, 1, 1), copied to the device once.

        Not float32 buffers, so that a model in float64 has them exactly.
        """
        dtype = next(self.parameters()).dtype
        if (device, dtype) not in self._on_device:
            pixels = torch.tensor([self.pixel_mean, self.pixel_std, self.pad_value], dtype=dtype)
            self._on_device[device, dtype] = pixels[..., None, None].to(device)
        return self._on_device[device, dtype]

    def features(self, batch: Batch) -> list[Tensor]:
        """The pyramid of a batch."""
        return self.neck(self.backbone(self.normalize(batch)))

    def loss(self, batch: Batch, features: list[Tensor] | None = None) -> dict[str, Tensor]:
        """The losses, each a scalar: two of the RPN, two a stage of the box head, and `loss_mask`.

        Args:
            batch: with targets.
            features: of the batch, if they are known already.
        """
        assert batch.targets is not None
        features = self.features(batch) if features is None else features
        output = self.rpn(features, tuple(batch.images.shape[2:]))
        losses = self.rpn.loss(output, batch)
        proposals = self.rpn.propose(output, batch, training=True)
        rois = self.roi_sampler(proposals, batch.targets, batch.keys)
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
        output = self.rpn(features, tuple(batch.images.shape[2:]))
        proposals = self.rpn.propose(output, batch, training=False)
        detections = self.box_head.predict(
            features, proposals.boxes, proposals.valid, batch.windows
        )
        if self.mask_head is not None:
            detections.masks = self.mask_head.predict(features, detections)
        return detections
