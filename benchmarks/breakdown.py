"""Where the time of a step goes, by the part of the model and by what the kernels are."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.models.heads import box_head, mask_head
from mrcnn_lightning.models.rpn import proposals, rpn

CONVOLUTIONS = "convolutions and matrix products"
OTHER = "other"
IDLE = "between operators"
STEP = "step"
# Operators on the host, and kernels of a GPU, that do the work that cannot be avoided.
_OPERATORS = re.compile(
    r"aten::(mkldnn_convolution|_?convolution|convolution_backward|_slow_conv\w*|thnn_conv\w*"
    r"|cudnn_convolution\w*|mkldnn_linear|mkldnn_rnn|addmm|mm|bmm|baddbmm|linear)"
    r"|mkldnn::\w+|mkl::\w+|onednn::\w+"
)
# How the host tells a GPU what to do, by the names of CUDA's calls.
_LAUNCHES = re.compile(r"(cuda|cu)(Launch|Memcpy|Memset|GraphLaunch)\w*")
_KERNELS = re.compile(r"gemm|conv|xmma|cutlass|cudnn|wgrad|dgrad|nvjet|splitK", re.IGNORECASE)


def _labelled(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return function(*args, **kwargs)

    return run


def _parts(model: Any) -> Iterator[tuple[Any, str, str]]:
    """What is labelled: an object, its attribute and the label."""
    if isinstance(model, Detector):
        yield model.rpn, "sampler", "target assignment"
        yield model, "roi_sampler", "target assignment"
        yield model.mask_head, "targets", "target assignment"
        yield model.rpn, "selector", "proposals"
        yield proposals, "batched_nms", "NMS"
        yield model.box_head.roi_features.pooler, "forward", "RoIAlign"
        yield model.mask_head.roi_features.pooler, "forward", "RoIAlign"
        yield model.rpn, "box_loss", "losses"
        yield model.box_head.branch, "loss", "losses"
        yield rpn, "objectness_loss", "losses"
        yield mask_head, "mask_loss", "losses"
        yield box_head, "classification_loss", "losses"
        yield model, "normalize", "normalisation"
    else:
        yield model.rpn, "assign_targets_to_anchors", "target assignment"
        yield model.roi_heads, "select_training_samples", "target assignment"
        yield model.rpn, "filter_proposals", "NMS"
        yield model.roi_heads.box_roi_pool, "forward", "RoIAlign"
        yield model.roi_heads.mask_roi_pool, "forward", "RoIAlign"
        yield model.rpn, "compute_loss", "losses"
        yield model.transform, "forward", "normalisation"


@contextmanager
def _labels(model: Any) -> Iterator[set[str]]:
    labels = set()
    with ExitStack() as stack:
        for owner, attribute, label in _parts(model):
            function = _labelled(label, getattr(owner, attribute))
            if isinstance(owner, torch.nn.Module):
                stack.enter_context(mock.patch.dict(owner.__dict__, {attribute: function}))
                if attribute in owner._modules:
                    stack.enter_context(mock.patch.dict(owner._modules))
                    del owner._modules[attribute]
            else:
                stack.enter_context(mock.patch.object(owner, attribute, function))
            labels.add(label)
        yield labels


def shares(step: Callable[[], None], model: Any) -> tuple[dict[str, float], int]:
    """The part of a step's time, in [0, 1], that each label has; and the kernels it launched.

    On a GPU it is the time of kernels, on the host that of operators; the rest of the step's
    duration is `IDLE`. What runs backwards counts for what ran forwards.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with _labels(model) as labels:
        step()
        with profile(activities=activities) as profiler, record_function(STEP):
            step()
            if on_gpu:
                torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type.name == "CPU"]
    forwards: dict[int, str] = {}
    for event in events:
        label = _label_of(event, labels)
        if label is not None and event.sequence_nr >= 0:
            forwards.setdefault(event.sequence_nr, label)
    times: Counter[str] = Counter()
    for event in events:
        label = _label_of(event, labels) or _label_of_forward(event, forwards) or OTHER
        if on_gpu:
            for kernel in event.kernels:
                times[CONVOLUTIONS if _KERNELS.search(kernel.name) else label] += kernel.duration
        elif event.name != STEP:
            is_convolution = _OPERATORS.fullmatch(event.name)
            times[CONVOLUTIONS if is_convolution else label] += event.self_cpu_time_total
    total = next(event.cpu_time_total for event in events if event.name == STEP)
    times[IDLE] = total - sum(times.values())
    launches = sum(len(event.kernels) for event in events)
    return {label: time / total for label, time in times.most_common()}, launches


def host_calls(step: Callable[[], None]) -> dict[str, int]:
    """Operators of a step, and how often it tells a GPU to do something: `launches`."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    names = [event.name for event in profiler.events()]
    return {
        "operators": sum(name.startswith("aten::") for name in names),
        "launches": sum(_LAUNCHES.fullmatch(name) is not None for name in names),
    }


def _label_of(event: Any, labels: set[str]) -> str | None:
    """The innermost of the labels that an operator ran under."""
    while event is not None:
        if event.name in labels:
            return str(event.name)
        if event.name.startswith("Optimizer."):
            return "optimizer"
        event = event.cpu_parent
    return None


def _label_of_forward(event: Any, forwards: dict[int, str]) -> str | None:
    """The label of the forward operator whose gradient this operator computes."""
    while event is not None:
        if event.name.startswith("autograd::engine"):
            return forwards.get(event.sequence_nr)
        event = event.cpu_parent
    return None


def print_breakdown(name: str, step: Callable[[], None], model: Any) -> dict[str, float]:
    """The shares, rounded, and on a GPU the number of kernels, after a table of them."""
    found, launches = shares(step, model)
    table = Table(title=f"where the time goes: {name}", title_justify="left")
    table.add_column("part")
    table.add_column("share", justify="right")
    for label, share in found.items():
        table.add_row(label, f"{share:.1%}")
    rounded = {label: round(share, 4) for label, share in found.items()}
    if launches:
        table.add_row("kernels launched", str(launches))
        rounded["kernels launched"] = launches
    Console(width=110).print(table)
    return rounded
