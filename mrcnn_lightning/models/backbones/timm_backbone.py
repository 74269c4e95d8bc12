"""Backbones of timm's networks."""

from collections.abc import Sequence

from mrcnn_lightning.models.backbones.backbone import Backbone, Pretrained
from mrcnn_lightning.models.backbones.pixels import Pixels
from mrcnn_lightning.models.backbones.timm_networks import timm_chain
from mrcnn_lightning.user_error import UserError


def timm(
    *,
    name: str,
    pixels: Pixels,
    out_indices: Sequence[int],
    trainable_stages: int,
    weights: str | None,
) -> Backbone:
    """One of timm's networks that give their maps layer by layer; `pip install "timm>=1.0.22"`.

    Args:
        name: timm's, such as `resnet50` or `convnext_tiny.fb_in22k`; no address and no folder,
            since a checkpoint says it too.
        pixels: what the weights expect of images.
        out_indices: which of its feature maps are handed out.
        trainable_stages: counted from the last; a stage is all layers of one stride.
        weights: `pretrained` for timm's own, a file of its whole network, or null.

    Raises:
        UserError: timm is not installed or has no such network, it gives no maps layer by layer
            or takes images of one size.
    """
    out_indices = list(out_indices)
    chain = timm_chain(name, out_indices, channels=pixels.channels)
    pretrained = None if weights is None else Pretrained(weights, name, out_indices)
    try:
        return Backbone(
            body=chain.body,
            pixels=pixels,
            outputs=chain.outputs,
            roi_layer=None,
            trainable_stages=trainable_stages,
            pretrained=pretrained,
            channels_last=chain.channels_last,
            stages=chain.stages,
        )
    except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
        raise UserError(
            f"backbone.name={name} cannot take an image of 64 x 96 pixels "
            f"({str(error).splitlines()[0]}): take a network for images of any size, such as "
            "resnet50, convnext_tiny or swin_tiny_patch4_window7_224"
        ) from error
