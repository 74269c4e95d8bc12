"""Weights of others, and of before, into our models.

K classes.
"""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.models import weight_names as names
from mrcnn_lightning.models.box_head import BoxBranch
from mrcnn_lightning.models.mask_head import MaskHead
from mrcnn_lightning.models.pixels import Pixels
from mrcnn_lightning.models.weight_files import (
    SPEC_KEY,
    published_entry,
    read_weights,
    require_whole,
)

if TYPE_CHECKING:
    from mrcnn_lightning.models.detector import Detector

log = logging.getLogger(__name__)

# torchvision's classifiers, which a backbone has no use for.
_CLASSIFIER_KEYS = re.compile(r"(fc|classifier|head|norm|avgpool)\.")
# torchvision's detectors that were trained with a batch-norm epsilon of 0.
_ZERO_EPS = re.compile(r"(Mask|Faster)RCNN_ResNet50_FPN_Weights\.\w+")
# Mean and deviation that all of torchvision's detectors have.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Where training programs keep weights, the averaged ones first: torchvision's and timm's scripts,
# Lightning, Detectron2, Detectron of before.
_PLACES = ("state_dict_ema", "model_ema", "state_dict", "model", "blobs")
# What DDP, torch.compile and Lightning's modules put before each name.
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass
class LoadReport:
    """What became of a checkpoint's tensors."""

    source: str
    loaded: list[str] = field(default_factory=list)  # our names
    replaced: list[str] = field(default_factory=list)  # ours that start afresh
    left_over: list[str] = field(default_factory=list)  # the file's that have no place here

    def log(self) -> None:
        """Say it."""
        log.info("%s: loaded %d tensors", self.source, len(self.loaded))
        if self.replaced:
            log.info("start afresh, since the classes are others: %s", ", ".join(self.replaced))
        if self.left_over:
            log.info("left over, and not needed: %s", ", ".join(self.left_over))


def differences(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, fresh: Iterable[str] = ()
) -> str:
    """What keeps `state` from being loaded into a module whose state is `own`; "" if nothing does.

    Args:
        own: by name.
        state: by name.
        fresh: names that may be missing.
    """
    counters = {key for key in {*own, *state} if key.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - state.keys() - set(fresh) - counters)
    left_over = sorted(state.keys() - own.keys() - counters)
    misshapen = [
        f"{key} {_shape(state[key])} for {_shape(own[key])}"
        for key in sorted(own.keys() & state.keys())
        if _shape(own[key]) != _shape(state[key])
    ]
    return "; ".join(
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for keys, what in [
            (missing, "missing"),
            (left_over, "left over"),
            (misshapen, "of another shape"),
        ]
        if keys
    )


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights of a training that had diverged: they would find nothing, without a word.

    Args:
        state: by name.
        source: what the weights are of, for the message.

    Raises:
        ValueError: names them.
    """
    broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if broken:
        first = ", ".join(broken[:3]) + (", ..." if len(broken) > 3 else "")
        raise ValueError(
            f"{source} has numbers that are not finite in {len(broken)} of its {len(state)} "
            f"tensors ({first}): its training had diverged, take an earlier checkpoint"
        )


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], report: LoadReport, unknown: Sequence[str] = ()
) -> None:
    """Load all of `state`; only parameters that the report has as replaced may be missing.

    Args:
        module: whose state it is.
        state: by the module's names.
        report: is completed and logged.
        unknown: names in the file that have no place and no excuse.

    Raises:
        ValueError: something does not fit, or is not finite.
    """
    own = module.state_dict()
    unexplained = {key: torch.empty(0) for key in unknown}
    problems = differences(own, {**state, **unexplained}, fresh=report.replaced)
    if problems:
        raise ValueError(f"{report.source} is not of this architecture: {problems}")
    require_finite(state, report.source)
    report.loaded = [key for key in state if key in own]
    module.load_state_dict({key: state[key] for key in report.loaded}, strict=False)
    report.log()


def unwrapped(content: dict[str, Any]) -> dict[str, Any]:
    """The weights in what a training program wrote, under the network's own names."""
    state = next((content[key] for key in _PLACES if _is_named(content.get(key))), content)
    state = {key: value for key, value in state.items() if key != "n_averaged"}
    while state:
        prefix = next(
            (each for each in _PREFIXES if all(key.startswith(each) for key in state)), ""
        )
        if not prefix:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(key, str) for key in entry)


def require_their_pixels(weights: str, *, architecture: str, pixels: Pixels) -> None:
    """Look whether a backbone gets what its weights expect, where their name says that.

    Raises:
        ValueError: it gets something else.
    """
    entry = published_entry(weights, architecture)
    if entry is None:
        return
    preset = entry.transforms()
    different = pixels.difference(mean=preset.mean, std=preset.std)
    if different:
        raise ValueError(
            f"backbone.weights={weights} are torchvision's {entry!r}, which were trained with "
            f"{different}: set these"
        )


def load_backbone(body: nn.Module, weights: str, *, architecture: str) -> LoadReport:
    """Load the layers of a classifier.

    Args:
        body: the layers, under torchvision's names (less a common `features.`).
        weights: see `read_weights`; torchvision's, or Detectron2's of a ResNet.
        architecture: torchvision's name of the network.

    Raises:
        ValueError: the weights cannot be had, or do not fit.
    """
    content = unwrapped(read_weights(weights, key="backbone.weights", architecture=architecture))
    report = LoadReport(f"backbone.weights={weights}")
    if "conv1_w" in content or any(".conv1.norm." in key for key in content):
        rules = names.CAFFE2_BACKBONE if "conv1_w" in content else names.DETECTRON2_BACKBONE
        state, report.left_over, unknown = names.translate(content, rules)
        if any(key.endswith("running_mean") for key in body.state_dict()):
            names.without_statistics(state)
        state = {key.removeprefix("backbone.body."): value for key, value in state.items()}
    else:
        state, unknown = {}, []
        for key, value in content.items():
            if _CLASSIFIER_KEYS.match(key):
                report.left_over.append(key)
            else:
                state[key.removeprefix("features.")] = value
    load_strictly(body, state, report, unknown)
    return report


def read_vgg_classifier(weights: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two layers of 4096 of a VGG-16, as `fc1` and `fc2`.

    Args:
        weights: see `read_weights`.
        own: the state that they are for.

    Raises:
        ValueError: the weights cannot be had, or do not fit.
    """
    key = "model.box_head.trunk.weights"
    content = unwrapped(read_weights(weights, key=key, architecture="vgg16"))
    places = {"fc1": "classifier.0", "fc2": "classifier.3"}
    state = {
        f"{ours}.{kind}": content[f"{theirs}.{kind}"]
        for ours, theirs in places.items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in content
    }
    problems = differences(own, state)
    if problems:
        raise ValueError(
            f"model.box_head.trunk.weights={weights} is no VGG-16's classifier: {problems}; set "
            "model.box_head.trunk.weights=null to start it afresh"
        )
    return state


def load_detector(detector: "Detector", weights: str) -> LoadReport:
    """Load a whole detector to start from; layers that depend on the classes fit where they can.

    Rows of classes that the file names are taken over by name if it names all of the model's. One
    that names none has COCO's classes, if their number and the model's names say so; another one
    with as many rows as the model has classes has these, in their order. Else exactly the layers
    with rows for classes keep their fresh initialisation.

    Args:
        detector: the model.
        weights: see `read_weights`: of torchvision, of Detectron2, of Matterport's port, or
            a checkpoint of this project.

    Raises:
        ValueError: the weights cannot be had, or do not fit.
    """
    content = read_weights(weights, key="weights")
    report = LoadReport(f"weights={weights}")
    state, class_names, unknown = _translated(content, detector, report)
    if re.fullmatch(r"\w+_Weights\.\w+", weights):
        _look_at_published(detector, weights)
    if class_names is None:
        class_names = _cocos_names(state, detector.class_names, weights)
    if class_names is None and _num_classes(state) == len(detector.class_names):
        log.warning(
            "%s does not name its %d classes: they are taken for the model's, in their order",
            report.source,
            len(detector.class_names),
        )
    report.replaced = _fit_classes(state, class_names, detector)
    load_strictly(detector, state, report, unknown)
    return report


def _translated(
    content: dict[str, Any], detector: "Detector", report: LoadReport
) -> tuple[dict[str, Tensor], list[str] | None, list[str]]:
    """A detector's weights under our names, its class names if known, and unknown keys."""
    if SPEC_KEY in content:
        require_whole(content, report.source)
        prefix = "model."
        state = {
            key.removeprefix(prefix): value
            for key, value in content["state_dict"].items()
            if key.startswith(prefix)
        }
        return state, content[SPEC_KEY]["class_names"], []
    content = unwrapped(content)
    if any(key.startswith("proposal_generator.rpn_head.") for key in content):
        state, report.left_over, unknown = names.translate(content, names.DETECTRON2)
        names.background_first(state)
        names.ratios_outermost(state, num_sizes=len(detector.rpn.anchors.sizes[0]))
    elif "fpn.C1.0.weight" in content:
        state, report.left_over, unknown = names.translate(content, names.MATTERPORT)
        names.x_before_y(state)
    elif "rpn.head.cls_logits.weight" in content:
        state, report.left_over, unknown = names.translate(content, names.TORCHVISION)
    else:
        first = ", ".join(list(content)[:3])
        raise ValueError(
            f"{report.source} is no detector that is known (its keys are {first}, ...): not "
            "torchvision's, Detectron2's, the Matterport port's nor this project's; a "
            "classifier's weights go to backbone.weights"
        )
    return state, None, unknown


def _cocos_names(
    state: Mapping[str, Tensor], wanted: Sequence[str], weights: str
) -> list[str] | None:
    """Names of the classes of a file that does not say them, if they are COCO's.

    A file of one's own with 80 classes may have others: it is COCO's where the model's names are.
    What is fetched was published for COCO.
    """
    of_coco = {len(coco): coco for coco in (names.COCO_80, names.COCO_90)}
    coco = of_coco.get(_num_classes(state))
    is_own = Path(weights).exists() and not set(wanted) <= set(coco or [])
    return None if is_own else coco


def _look_at_published(detector: "Detector", weights: str) -> None:
    """Refuse torchvision's detectors under other circumstances than they were trained in.

    Raises:
        ValueError: the backbone gets other pixels, or has another batch-norm epsilon.
    """
    different = detector.backbone.pixels.difference(mean=_IMAGENET[0], std=_IMAGENET[1])
    if different:
        raise ValueError(f"weights={weights} was trained with {different}: set these")
    norms = (FrozenBatchNorm2d, nn.BatchNorm2d)
    eps = {layer.eps for layer in detector.backbone.modules() if isinstance(layer, norms)}
    if _ZERO_EPS.fullmatch(weights) and eps - {0.0}:
        raise ValueError(
            f"weights={weights} was trained with a batch-norm epsilon of 0, the backbone has "
            f"{sorted(eps)}: set backbone.norm_eps=0"
        )


def _num_classes(state: Mapping[str, Tensor]) -> int:
    """K of a state under our names."""
    rows = [len(state[key]) for key in state if re.fullmatch(r"box_head\..*classifier\.bias", key)]
    return rows[0] - 1 if rows else 0


def _rows_per_class(detector: "Detector") -> dict[str, int]:
    """Rows that each class has in the parameters that have any, by name."""
    sizes = {}
    for name, head in detector.named_modules():
        if isinstance(head, BoxBranch):
            sizes[f"{name}.classifier"] = 1
        if isinstance(head, BoxBranch | MaskHead) and not head.class_agnostic:
            layer, size = ("deltas", 4) if isinstance(head, BoxBranch) else ("classifier", 1)
            sizes[f"{name}.{layer}"] = size
    return {f"{layer}.{kind}": size for layer, size in sizes.items() for kind in ("weight", "bias")}


def _fit_classes(
    state: dict[str, Tensor], class_names: Sequence[str] | None, detector: "Detector"
) -> list[str]:
    """Pick the rows of the detector's classes in `state`, or take out the layers that have rows.

    Returns:
        The parameters that were taken out.
    """
    wanted, num_classes = detector.class_names, _num_classes(state)
    sizes = {key: size for key, size in _rows_per_class(detector).items() if key in state}
    if list(wanted) == class_names or (class_names is None and len(wanted) == num_classes):
        classes = torch.arange(num_classes)
    elif class_names is not None and set(wanted) <= set(class_names):
        classes = torch.tensor([class_names.index(name) for name in wanted])
    else:
        for key in sizes:
            del state[key]
        return sorted(sizes)
    for key, size in sizes.items():
        rows = state[key].unflatten(0, (-1, size))
        has_background = len(rows) == num_classes + 1
        # A background's box or mask (torchvision's, Matterport's) is never used.
        is_score = size == 1 and key.startswith("box_head.")
        chosen = rows[classes + int(has_background)]
        state[key] = (torch.cat([rows[:1], chosen]) if is_score else chosen).flatten(0, 1)
    return []
