"""What a backbone's weights expect of an image's numbers.

B images, C channels of an image.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mrcnn_lightning.user_error import UserError


class Pixels:
    """The number and order of channels, and their mean and deviation.

    Args:
        channel_order: RGB, or BGR for weights of Caffe's models; RGB leaves other channels as
            they are.
        mean: of the channels in their order, in the images' own numbers (0..255 for RGB),
            subtracted.
        std: of the channels, divided by.
        channels: C; 3 in checkpoints that do not say it.

    Raises:
        UserError: there is no such order, or there is not one mean and deviation a channel.
    """

    def __init__(
        self,
        *,
        channel_order: Literal["RGB", "BGR"],
        mean: Sequence[float],
        std: Sequence[float],
        channels: int = 3,
    ) -> None:
        if channel_order not in ("RGB", "BGR"):
            raise UserError(f"backbone.pixels.channel_order={channel_order} is not RGB or BGR")
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise UserError(
                    f"backbone.pixels.{key} has {len(values)} numbers, and images have "
                    f"data.channels={channels}: give one a channel, as `mrcnn data stats` prints "
                    "them"
                )
        if min(std) <= 0:
            raise UserError(f"backbone.pixels.std={list(std)}: a deviation is more than 0")
        if channels != 3 and channel_order == "BGR":
            raise UserError(
                f"backbone.pixels.channel_order=BGR is of three channels, and images have "
                f"data.channels={channels}: set backbone.pixels.channel_order=RGB, which leaves "
                "them in their order"
            )
        self.channels = channels
        self.channel_order = channel_order
        self.mean = mean
        self.std = std
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def difference(self, *, mean: Sequence[float], std: Sequence[float]) -> str:
        """What to set for weights that were trained with these; "" if they are these.

        Images of other channels than three have a mean and deviation of their own.

        Args:
            mean: of R, G and B in 0..1, as torchvision and timm say it.
            std: likewise.
        """
        if self.channels != 3:
            return ""
        wanted = [[round(255 * value, 3) for value in values] for values in (mean, std)]
        pairs = zip([*self.mean, *self.std], [*wanted[0], *wanted[1]], strict=True)
        if self.channel_order == "RGB" and all(abs(a - b) <= 0.5 for a, b in pairs):
            return ""
        return (
            f"backbone.pixels.mean={wanted[0]} backbone.pixels.std={wanted[1]} "
            "backbone.pixels.channel_order=RGB"
        )

    def normalize(self, images: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Images (B, C, H, W), of three channels RGB, as the backbone wants them, in a `dtype`."""
        mean, std = self.constants(images.device, dtype)
        images = images.flip(1) if self.channel_order == "BGR" else images
        normalized: Tensor = (images.to(dtype) - mean) / std
        return normalized

    @torch.inference_mode(False)
    def constants(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Mean and deviation (2, C, 1, 1), copied to the device once.

        Not float32 buffers, so that a model in float64 has them exactly.
        """
        if (device, dtype) in self._on_device:
            return self._on_device[device, dtype]
        constants = torch.tensor([self.mean, self.std], dtype=dtype)[..., None, None].to(device)
        if not torch.compiler.is_compiling():  # what a graph computes is no tensor yet
            self._on_device[device, dtype] = constants
        return constants
