"""Weights of others: the only file that knows foreign checkpoints' key names.

K classes.
"""

import logging
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

if TYPE_CHECKING:
    from mrcnn_lightning.models.detector import Detector

log = logging.getLogger(__name__)

# Where a checkpoint of this project keeps what it takes to rebuild its model.
SPEC_KEY = "mrcnn_lightning"

# torchvision's classifiers, which a backbone has no use for.
_CLASSIFIER_KEYS = re.compile(r"(fc|classifier)\.")
# torchvision's Mask R-CNN, in the names of today and of its published files, which are older.
_TORCHVISION_KEYS = [
    (
        r"backbone\.fpn\.(inner_blocks|layer_blocks)\.(\d)\.(?:0\.)?(\w+)",
        r"neck.pyramid.\1.\2.0.\3",
    ),
    (r"rpn\.head\.conv\.(?:0\.0\.)?(\w+)", r"rpn.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"rpn.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"box_head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"box_head.fc2.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(\w+)", r"box_head.classifier.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(\w+)", r"box_head.deltas.\1"),
    (r"roi_heads\.mask_head\.(\d)\.0\.(\w+)", r"mask_head.convs.\1.\2"),
    (r"roi_heads\.mask_head\.mask_fcn1\.(\w+)", r"mask_head.convs.0.\1"),
    (r"roi_heads\.mask_head\.mask_fcn2\.(\w+)", r"mask_head.convs.1.\1"),
    (r"roi_heads\.mask_head\.mask_fcn3\.(\w+)", r"mask_head.convs.2.\1"),
    (r"roi_heads\.mask_head\.mask_fcn4\.(\w+)", r"mask_head.convs.3.\1"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"mask_head.classifier.\1"),
]
# Parameters with rows for each class: how many rows a class has, and rows of the background.
_CLASS_ROWS = {
    "box_head.classifier": (1, 1),
    "box_head.deltas": (4, 0),
    "mask_head.classifier": (1, 0),
}


def read_file(path: str | Path) -> dict[str, Any]:
    """What a checkpoint file holds; no code in it is run.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds more than plain data.
    """
    if not Path(path).is_file():
        raise ValueError(f"no such file: {path} (a name of torchvision's is written in capitals)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds objects other than tensors and plain values, which are "
            f"not loaded because they could run code: {str(error).splitlines()[0]}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no PyTorch file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint of this project holds.

    Raises:
        ValueError: see `read_file`, or the file is another program's.
    """
    checkpoint = read_file(path)
    if SPEC_KEY not in checkpoint:
        raise ValueError(
            f"{path} is no checkpoint of this project: to start from foreign weights, say "
            "weights=FILE"
        )
    return checkpoint


def _read_weights(weights: str, architecture: str, key: str) -> tuple[dict[str, Any], bool]:
    """The content of a file or of torchvision's weights, and whether it was the latter."""
    if not re.fullmatch(r"[A-Z0-9_]+", weights):
        return read_file(weights), False
    published = torchvision.models.get_model_weights(architecture)
    if weights not in published.__members__:
        names = ", ".join(published.__members__)
        raise ValueError(f"{key}={weights} is no weights of torchvision's {architecture}: {names}")
    try:
        return dict(published[weights].get_state_dict(progress=False, check_hash=True)), True
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot download {key}={weights} from {published[weights].url}: {error}. Without a "
            f"network, fetch that file elsewhere and set {key}=/path/to/it; to start from nothing, "
            f"set {key}=null"
            + (" backbone.trainable_stages=5 backbone.norm=bn" if key == "backbone.weights" else "")
        ) from error


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
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
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


def _load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], source: str, fresh: set[str]
) -> None:
    """Load all of `state`; only parameters in `fresh` may be missing."""
    own = module.state_dict()
    problems = differences(own, state, fresh=fresh)
    if problems:
        raise ValueError(f"{source} is not of this architecture: {problems}")
    module.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def load_backbone(body: nn.Module, weights: str, *, architecture: str) -> None:
    """Load a torchvision classifier's layers.

    Args:
        body: the layers, under torchvision's names (less a common `features.`).
        weights: a name of torchvision's weights such as IMAGENET1K_V1, or a file.
        architecture: torchvision's name of the network.

    Raises:
        ValueError: the weights cannot be had, or do not fit.
    """
    content, _ = _read_weights(weights, architecture, "backbone.weights")
    state = {
        key.removeprefix("features."): value
        for key, value in content.items()
        if not _CLASSIFIER_KEYS.match(key)
    }
    _load_strictly(body, state, f"backbone.weights={weights}", fresh=set())
    log.info("backbone: loaded all %d tensors of %s", len(state), weights)


def load_detector(detector: "Detector", weights: str) -> None:
    """Load a whole detector to start from; layers that depend on the classes fit where they can.

    Rows of classes that the file names are taken over by name if it names all of the model's;
    else exactly the layers with rows for classes keep their fresh initialisation.

    Args:
        detector: the model.
        weights: COCO_V1 (torchvision's `maskrcnn_resnet50_fpn`, or `fasterrcnn_resnet50_fpn`
            where there is no mask head), such a model's file, or a checkpoint of this project.

    Raises:
        ValueError: the weights cannot be had, or do not fit.
    """
    kind = "fasterrcnn" if detector.mask_head is None else "maskrcnn"
    content, is_published = _read_weights(weights, f"{kind}_resnet50_fpn", "weights")
    if is_published:
        _require_zero_eps(detector, weights)
    if SPEC_KEY in content:
        names = content[SPEC_KEY]["class_names"]
        state = {
            key.removeprefix("model."): value
            for key, value in content["state_dict"].items()
            if key.startswith("model.")
        }
    else:
        state, names = _from_torchvision(content)
        eps = _norm_eps(detector)
        if eps - {0.0}:
            log.warning(
                "weights=%s: torchvision's published detectors want backbone.norm_eps=0, it is %s",
                weights,
                sorted(eps),
            )
    fresh = _fit_classes(state, names, detector)
    _load_strictly(detector, state, f"weights={weights}", fresh)
    log.info("model: loaded %d tensors of %s", len(state), weights)
    if fresh:
        log.info("model: %s start afresh, since the classes are others", ", ".join(sorted(fresh)))


def _norm_eps(detector: "Detector") -> set[float]:
    norms = (FrozenBatchNorm2d, nn.BatchNorm2d)
    return {layer.eps for layer in detector.backbone.modules() if isinstance(layer, norms)}


def _require_zero_eps(detector: "Detector", weights: str) -> None:
    eps = _norm_eps(detector)
    if eps - {0.0}:
        raise ValueError(
            f"weights={weights} was trained with a batch-norm epsilon of 0, the backbone has "
            f"{sorted(eps)}: set backbone.norm_eps=0"
        )


def _from_torchvision(content: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str] | None]:
    """A torchvision detector's weights under our names, and its class names if it is COCO's."""
    state = {}
    for key, value in content.items():
        new_key = key
        for pattern, replacement in _TORCHVISION_KEYS:
            new_key = re.sub(f"^{pattern}$", replacement, new_key)
        # The background's box and mask, which torchvision has rows for, are never used.
        if new_key.startswith("box_head.deltas."):
            value = value[4:]
        if new_key.startswith("mask_head.classifier."):
            value = value[1:]
        state[new_key] = value
    coco = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]
    num_classes = len(state.get("box_head.classifier.bias", [0])) - 1
    return state, coco if num_classes == len(coco) else None


def _fit_classes(
    state: dict[str, Tensor], names: Sequence[str] | None, detector: "Detector"
) -> set[str]:
    """Pick the rows of the detector's classes in `state`, or take out the layers that have rows.

    Returns:
        The parameters that were taken out.
    """
    wanted = detector.class_names
    num_classes = len(state.get("box_head.classifier.bias", [0])) - 1
    if names is None and num_classes == len(wanted):
        return set()
    parameters = [key for key in state if key.rpartition(".")[0] in _CLASS_ROWS]
    if names is None or not set(wanted) <= set(names):
        for key in parameters:
            del state[key]
        return set(parameters)
    classes = torch.tensor([names.index(name) for name in wanted])
    for key in parameters:
        per_class, background = _CLASS_ROWS[key.rpartition(".")[0]]
        rows = state[key][background:].unflatten(0, (-1, per_class))[classes].flatten(0, 1)
        state[key] = torch.cat([state[key][:background], rows])
    return set()
