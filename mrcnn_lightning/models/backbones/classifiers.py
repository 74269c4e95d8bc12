"""Backbones of torchvision's classifiers: VGG, MobileNet, EfficientNet, ConvNeXt, Swin."""

from collections.abc import Sequence
from typing import Any

import torchvision

from mrcnn_lightning.models.backbones.backbone import Backbone, Pretrained
from mrcnn_lightning.models.backbones.first_convolution import take_channels
from mrcnn_lightning.models.backbones.pixels import Pixels
from mrcnn_lightning.models.norms import norm_layer
from mrcnn_lightning.user_error import UserError


def torchvision_features(
    *,
    name: str,
    pixels: Pixels,
    norm: str | None,
    norm_eps: float | None,
    outputs: Sequence[int],
    trainable_stages: int,
    weights: str | None,
) -> Backbone:
    """The `features` of one of torchvision's classifiers: VGG, MobileNet, EfficientNet, Swin, ...

    Args:
        name: torchvision's, such as `mobilenet_v2`.
        pixels: what the weights expect of images.
        norm: one of `NORMS`; None leaves the network its own, or has none to choose.
        norm_eps: of the norm; None where it has its own.
        outputs: numbers of the layers whose outputs are handed out.
        trainable_stages: counted from the last; a stage is all layers of one stride.
        weights: a name of torchvision's weights such as IMAGENET1K_V1, a file, or null.

    Raises:
        UserError: there is no such network, or an argument is out of range.
    """
    if norm is not None and name.startswith(("convnext", "swin")):
        raise UserError(
            f"backbone.norm={norm}: {name} has norms of its own, set backbone.norm=null"
        )
    if (norm is None) != (norm_eps is None):
        raise UserError(
            f"backbone.norm={norm} backbone.norm_eps={norm_eps}: a norm that is chosen needs an "
            "epsilon, and a network's own has its own"
        )
    options: dict[str, Any] = {}
    if norm is not None and norm_eps is not None:
        options["norm_layer"] = norm_layer(norm, norm_eps)
    try:
        body = torchvision.models.get_model(name, weights=None, **options).features
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"backbone.name={name} backbone.norm={norm}: torchvision has no such network with "
            f"features ({error}); networks without batch norm want backbone.norm=null"
        ) from error
    take_channels(body, pixels.channels)
    return Backbone(
        body=body,
        pixels=pixels,
        outputs=[str(number) for number in outputs],
        roi_layer=None,
        trainable_stages=trainable_stages,
        pretrained=None if weights is None else Pretrained(weights, name),
        channels_last=name.startswith("swin"),
    )
