"""Weights of others, and of before, into our models."""

import logging
from typing import Any

from torch import Tensor

from mrcnn_lightning.models.backbones.backbone import Backbone
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.models.heads.trunks import TwoFC
from mrcnn_lightning.user_error import UserError
from mrcnn_lightning.weights import detectron2, matterport, own, torchvision
from mrcnn_lightning.weights.classes import cocos_names, fit_classes, num_classes_of
from mrcnn_lightning.weights.files import read_weights
from mrcnn_lightning.weights.first_convolution import fit_channels, warn_of_scale
from mrcnn_lightning.weights.renaming import translate
from mrcnn_lightning.weights.report import LoadReport, differences, load_strictly
from mrcnn_lightning.weights.timm import load_timm
from mrcnn_lightning.weights.unwrapping import unwrapped

log = logging.getLogger(__name__)


def load_weights(detector: Detector, weights: str | None) -> None:
    """Give a fresh detector what it starts from: a whole detector's weights, or its backbone's.

    Args:
        detector: the model.
        weights: see `load_detector`; None loads what the backbone was made for, if anything.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """
    if weights is not None:
        load_detector(detector, weights)
    elif detector.backbone.pretrained is not None:
        branch = getattr(detector.box_head, "branch", None)
        trunk = getattr(branch, "trunk", None)
        load_backbone(detector.backbone, trunk if isinstance(trunk, TwoFC) else None)


def load_backbone(backbone: Backbone, trunk: TwoFC | None = None) -> LoadReport:
    """Load the classifier that a backbone is to start from.

    Args:
        backbone: its `pretrained` says which: torchvision's, Detectron2's of a ResNet, or timm's.
        trunk: of the box head; the classifier's two layers go there where they fit, which are
            VGG-16's with 4096 units (Fast R-CNN, section 2.2).

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """
    assert backbone.pretrained is not None
    weights, architecture, out_indices = backbone.pretrained
    if out_indices is not None:
        return load_timm(backbone)
    torchvision.require_classifiers_pixels(weights, architecture, backbone.pixels)
    content = unwrapped(read_weights(weights, key="backbone.weights", architecture=architecture))
    report = LoadReport(f"backbone.weights={weights}")
    rules = detectron2.backbone_rules(content)
    if rules is not None:
        state, report.left_over, unknown = translate(content, rules)
        if any(key.endswith("running_mean") for key in backbone.body.state_dict()):
            detectron2.without_statistics(state)
        state = {key.removeprefix("backbone.body."): value for key, value in state.items()}
    else:
        in_trunk = _classifiers_trunk(content, trunk)
        if trunk is not None and "classifier.3.weight" in content and not in_trunk:
            log.warning("%s: its classifier's layers do not fit the box head's", report.source)
        if trunk is not None and in_trunk:
            load_strictly(trunk, in_trunk, LoadReport(f"{report.source}, its classifier's layers"))
        is_classifiers = torchvision.CLASSIFIER_KEYS.match
        report.left_over = [key for key in content if is_classifiers(key)]
        kept = {key: value for key, value in content.items() if not is_classifiers(key)}
        state, unknown = {key.removeprefix("features."): kept[key] for key in kept}, []
    unused = [key for key in state if key.partition(".")[0] in backbone.left_out]
    report.left_over += unused
    state = {key: state[key] for key in state if key not in unused}
    if rules is not None:
        warn_of_scale(report.source, backbone)
    fit_channels(state, backbone.body, report.source, is_bgr=rules is not None)
    load_strictly(backbone.body, state, report, unknown)
    return report


def _classifiers_trunk(content: dict[str, Any], trunk: TwoFC | None) -> dict[str, Tensor]:
    """A classifier's first two layers as a trunk's; nothing where they are others."""
    places = {"fc1": "classifier.0", "fc2": "classifier.3"}
    state = {
        f"{ours}.{kind}": content[f"{theirs}.{kind}"]
        for ours, theirs in places.items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in content
    }
    fits = trunk is not None and state and not differences(trunk.state_dict(), state)
    return state if fits else {}


def load_detector(detector: Detector, weights: str) -> LoadReport:
    """Load a whole detector to start from; layers that depend on the classes fit where they can.

    Rows of classes that the file names are taken over by name if it names all of the model's. One
    that names none has COCO's classes, if their number and the model's names say so; another one
    with as many rows as the model has classes has these, in their order. Else exactly the layers
    with rows for classes keep their fresh initialisation.

    Args:
        detector: the model.
        weights: see `read_weights`: of torchvision, of Detectron2, of Matterport's port, or a
            checkpoint of this project.

    Raises:
        UserError: the weights cannot be had, or do not fit.
    """
    content = read_weights(weights, key="weights")
    report = LoadReport(f"weights={weights}")
    class_names: list[str] | None = None
    unknown: list[str] = []
    if own.is_checkpoint(content):
        own.require_whole(content, report.source)
        state = own.detector_state(content)
        class_names = content[own.DESCRIPTION_KEY]["class_names"]
        is_bgr = own.is_bgr(content)
    else:
        content = unwrapped(content)
        state, unknown = _foreign(content, detector, weights, report)
        class_names = cocos_names(state, detector.class_names, weights)
        is_bgr = detectron2.is_detector(content)
        if is_bgr or matterport.is_detector(content):
            warn_of_scale(report.source, detector.backbone)
    body = detector.backbone.body
    fit_channels(state, body, report.source, is_bgr=is_bgr, place="backbone.body.")
    if class_names is None and num_classes_of(state) == len(detector.class_names):
        log.warning(
            "%s does not name its %d classes: they are taken for the model's, in their order",
            report.source,
            len(detector.class_names),
        )
    report.replaced = fit_classes(state, class_names, detector)
    load_strictly(detector, state, report, unknown)
    return report


def _foreign(
    content: dict[str, Any], detector: Detector, weights: str, report: LoadReport
) -> tuple[dict[str, Tensor], list[str]]:
    """Another project's detector under our names, and keys that are unknown."""
    pixels = detector.backbone.pixels
    if detectron2.is_detector(content):
        detectron2.require_pixels(weights, pixels)
        state, report.left_over, unknown = translate(content, detectron2.DETECTOR)
        detectron2.background_first(state)
        detectron2.ratios_outermost(state, num_sizes=len(detector.rpn.anchors.sizes[0]))
    elif matterport.is_detector(content):
        state, report.left_over, unknown = translate(content, matterport.DETECTOR)
        matterport.x_before_y(state)
    elif torchvision.is_detector(content):
        torchvision.require_detectors_pixels(weights, pixels)
        state, report.left_over, unknown = translate(content, torchvision.DETECTOR)
        torchvision.without_epsilon(weights, state, detector.backbone)
    else:
        first = ", ".join(list(content)[:3])
        raise UserError(
            f"{report.source} is no detector that is known (its keys are {first}, ...): not "
            "torchvision's, Detectron2's, the Matterport port's nor this project's; a "
            "classifier's weights go to backbone.weights"
        )
    return state, unknown
