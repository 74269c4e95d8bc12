"""timm's weights, and files of its networks, for backbones."""

import logging
import re
import sys
from typing import Any

from torch import nn

from mrcnn_lightning.models.backbones.backbone import Backbone
from mrcnn_lightning.models.backbones.pixels import Pixels
from mrcnn_lightning.models.backbones.timm_networks import made, timm_chain
from mrcnn_lightning.user_error import UserError
from mrcnn_lightning.weights.files import read_weights
from mrcnn_lightning.weights.first_convolution import fit_channels
from mrcnn_lightning.weights.report import LoadReport, load_strictly
from mrcnn_lightning.weights.unwrapping import unwrapped

log = logging.getLogger(__name__)


def load_timm(backbone: Backbone) -> LoadReport:
    """Load the weights that a backbone of timm's is to start from.

    Raises:
        UserError: they cannot be had, do not fit, or expect other pixels.
    """
    weights, name, out_indices = backbone.pretrained or ("", "", None)
    assert out_indices is not None
    is_file = weights != "pretrained"
    chain = timm_chain(name, out_indices, channels=backbone.pixels.channels, pretrained=not is_file)
    is_certain = not is_file or "." in name
    _look_at_pixels(name, backbone.pixels, chain.net.pretrained_cfg, is_certain=is_certain)
    report = LoadReport(f"backbone.weights={weights}")
    if is_file:
        _load_file(chain.net, name, weights, report)
    kept = backbone.body.state_dict()
    state = {key: value for key, value in chain.body.state_dict().items() if key in kept}
    backbone.body.load_state_dict(state)
    report.loaded = list(state)
    return report


def _look_at_pixels(name: str, pixels: Pixels, known: dict[str, Any], *, is_certain: bool) -> None:
    """Compare what timm says of a network's weights; a file may be of others if no tag is named."""
    different = pixels.difference(mean=known["mean"], std=known["std"])
    if different and is_certain:
        raise UserError(
            f"backbone.name={name}: its weights were trained with {different}, set these"
        )
    if different:
        log.warning(
            "backbone.name=%s: timm's own weights of it were trained with %s: if the file has "
            "these, set these",
            name,
            different,
        )


def _load_file(net: nn.Module, name: str, weights: str, report: LoadReport) -> None:
    """Load a file of the whole network, or of what is used of it; nothing else may be in it."""
    import timm

    content = unwrapped(read_weights(weights, key="backbone.weights"))
    whole = made(name, f"backbone.name={name}")
    module = sys.modules[timm.models.model_entrypoint(name.partition(".")[0]).__module__]
    translate = getattr(module, "checkpoint_filter_fn", None)  # of the authors' names
    if translate is not None:
        try:
            content = translate(content, whole)
        except Exception as error:  # it is made for the authors' files alone
            raise UserError(
                f"{report.source} is not of this architecture ({name}): {error!r}"
            ) from error
    # A network that gives maps has the parts of its sequences on its first level.
    flat = {
        f"{sequence}.{part}.": f"{sequence}_{part}."
        for sequence, parts in whole.named_children()
        for part, _ in parts.named_children()
        if f"{sequence}_{part}" in net._modules
    }
    own, names = net.state_dict(), whole.state_dict()
    state: dict[str, Any] = {}
    unknown: list[str] = []
    for key, value in content.items():
        start = re.match(r"\w+\.\w+\.", key)
        ours = key
        if start is not None and start[0] in flat:
            ours = flat[start[0]] + key.removeprefix(start[0])
        if ours in own:
            state[ours] = value
        else:
            (report.left_over if key in names else unknown).append(key)
    fit_channels(state, net, report.source, is_bgr=False)
    load_strictly(net, state, report, unknown)
