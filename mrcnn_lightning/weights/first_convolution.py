"""The first convolution of weights for RGB images, fitted to images of other channels.

C channels of the image, O of the convolution.
"""

import logging

import torch
from torch import Tensor, nn

from mrcnn_lightning.models.backbones.first_convolution import first_convolution

log = logging.getLogger(__name__)


def adapted(weight: Tensor, channels: int) -> Tensor:
    """A convolution of RGB images for other channels, by timm's rule (`adapt_input_conv`).

    One channel gets the sum, so that a grey image gives what it gave as RGB. More get R, G, B,
    R, ... in turn, scaled by 3 / C, so that the outputs keep their size.

    Args:
        weight: (O, 3, h, w).
        channels: C.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    turn = torch.arange(channels, device=weight.device) % 3
    return weight[:, turn] * (3 / channels)  # (O, C, h, w)


def fit_channels(
    state: dict[str, Tensor], network: nn.Module, source: str, *, is_bgr: bool, place: str = ""
) -> None:
    """Fit the first convolution in `state` to the network's channels, if they are not three.

    Args:
        state: by the network's names; is changed.
        network: whose channels are meant.
        source: what the weights are of, for the log.
        is_bgr: whether they were trained on BGR.
        place: what stands before the network's names in `state`.
    """
    name, convolution = first_convolution(network)
    key, channels = f"{place}{name}.weight", convolution.in_channels
    weight = state.get(key)
    if channels == 3 or not isinstance(weight, Tensor) or weight.shape[1:2] != (3,):
        return
    state[key] = adapted(weight.flip(1) if is_bgr else weight, channels)
    log.info("%s: %s was fitted from 3 to %d channels", source, key, channels)


def warn_of_scale(source: str, network: nn.Module) -> None:
    """Say what weights that were trained without a deviation (Caffe's, Matterport's) expect."""
    if first_convolution(network)[1].in_channels != 3:
        log.warning(
            "%s: models of its kind are mostly trained on numbers of 0..255 less their mean, which "
            "are not divided: then divide each of backbone.pixels.std by 57, ImageNet's deviation",
            source,
        )
