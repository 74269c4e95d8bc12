"""What layers start with that no file fills: the habits of each model's source.

Parts start with the papers' (normal, 0.01 and 0.001 for boxes; He et al. 2015 for convolutions with
ReLU; zero biases). A function here changes what its source does otherwise; backbones have theirs.
"""

from typing import TYPE_CHECKING

from torch import nn

from mrcnn_lightning.models.heads.box_head import BoxBranch
from mrcnn_lightning.models.heads.mask_head import MaskHead
from mrcnn_lightning.models.protocols import Part

if TYPE_CHECKING:
    from mrcnn_lightning.models.detector import Detector


def papers(detector: "Detector") -> None:
    """As the parts are made: boxes start at their proposals (Girshick 2015, Ren et al. 2017)."""


def torchvision(detector: "Detector") -> None:
    """PyTorch's own for all fully connected layers.

    The mask classifier stays as it is: torchvision's grows as classes become fewer.
    """
    for branch in _branches(detector):
        branch.classifier.reset_parameters()
        branch.deltas.reset_parameters()


def detectron2(detector: "Detector") -> None:
    """Caffe2's Xavier for the fully connected layers of trunks: uniform, by what goes in."""
    for layer in _fully_connected(detector):
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)


def vgg(detector: "Detector") -> None:
    """VGG's of torchvision: normal with 0.01 for the fully connected layers of trunks."""
    for layer in _fully_connected(detector):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)


def matterport(detector: "Detector") -> None:
    """Keras's: Xavier (Glorot and Bengio 2010) for every layer after the backbone."""
    parts: list[Part] = [detector.neck, detector.rpn, *_trunks(detector)]
    for branch in _branches(detector):
        parts += [branch.classifier, branch.deltas]
    if isinstance(head := detector.mask_head, MaskHead):
        parts += [head.trunk, head.deconv, head.classifier]
    for layer in (layer for part in parts for layer in part.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _branches(detector: "Detector") -> list[BoxBranch]:
    return [layer for layer in detector.box_head.modules() if isinstance(layer, BoxBranch)]


def _trunks(detector: "Detector") -> list[nn.Module]:
    return [branch.trunk for branch in _branches(detector)]


def _fully_connected(detector: "Detector") -> list[nn.Linear]:
    layers = [layer for trunk in _trunks(detector) for layer in trunk.modules()]
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
