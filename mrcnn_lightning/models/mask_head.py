"""The mask head: a small mask for each class of each RoI (Mask R-CNN, section 3 and figure 4).

B images, R RoIs, D detections, N RoIs of the batch, K classes, m mask side.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrcnn_lightning.models.roi_sampler import SampledRoIs
from mrcnn_lightning.ops.losses import mask_loss
from mrcnn_lightning.ops.masks import mask_targets
from mrcnn_lightning.ops.precision import at_least_float32
from mrcnn_lightning.structures import Detections, Targets


class MaskHead(nn.Module):
    """3x3 convolutions, a 2x2 deconvolution that doubles the size, and a map for each class.

    Args:
        in_channels: of the features.
        strides: of the levels that RoIs are cut from.
        num_classes: K.
        pooler: makes the pooler from the strides; masks are twice its output size.
        num_convs: 3x3 convolutions.
        hidden: channels of all layers.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        strides: Sequence[int],
        num_classes: int,
        pooler: Callable[..., Any],
        num_convs: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.pooler = pooler(strides=strides)
        self.mask_size = 2 * self.pooler.output_size
        channels = [in_channels] + [hidden] * num_convs
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[layer], hidden, 3, padding=1) for layer in range(num_convs)
        )
        self.deconv = nn.ConvTranspose2d(channels[-1], hidden, 2, stride=2)
        self.classifier = nn.Conv2d(hidden, num_classes, 1)
        for layer in [*self.convs, self.deconv]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(
        self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, labels: Tensor
    ) -> Tensor:
        """Mask logits (N, m, m) of the classes `labels` (N,) in boxes (N, 4)."""
        hidden = self.pooler(features, boxes, image_index)
        for conv in self.convs:
            hidden = F.relu(conv(hidden))
        maps = self.classifier(F.relu(self.deconv(hidden)))  # (N, K, m, m)
        return maps[torch.arange(len(maps), device=maps.device), labels - 1]

    def loss(
        self, features: Sequence[Tensor], rois: SampledRoIs, targets: Targets
    ) -> dict[str, Tensor]:
        """`loss_mask`, over the positive RoIs alone."""
        assert targets.masks is not None and targets.mask_frames is not None
        # The host waits for the number of positives: convolutions on all RoIs would cost more.
        image, roi = torch.nonzero(rois.labels, as_tuple=True)
        boxes, objects = rois.boxes[image, roi], rois.objects[image, roi]
        wanted = mask_targets(
            targets.masks[image, objects],
            targets.mask_frames[image, objects],
            boxes,
            self.mask_size,
        )
        return mask_loss(self(features, boxes, image, rois.labels[image, roi]), wanted)

    def predict(self, features: Sequence[Tensor], detections: Detections) -> Tensor:
        """Mask probabilities (B, D, m, m) of the detections' own classes, zero where padded."""
        image, place = torch.nonzero(detections.labels, as_tuple=True)
        boxes, labels = detections.boxes[image, place], detections.labels[image, place]
        found = at_least_float32(self(features, boxes, image, labels)).sigmoid()
        masks = found.new_zeros(*detections.labels.shape, self.mask_size, self.mask_size)
        masks[image, place] = found
        return masks
