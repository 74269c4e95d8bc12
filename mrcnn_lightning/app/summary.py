"""What a model is and costs: its parts, input, anchors and classes.

H, W the canvas, P proposals, D detections.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mrcnn_lightning.checkpoint import Rebuilt
from mrcnn_lightning.models.detector import Detector

# What tells one backbone from another, among its options.
_BACKBONE_OPTIONS = ("name", "depth", "width", "groups", "norm")
_NAMES_SHOWN = 10


class Part(NamedTuple):
    """A part of the model."""

    name: str
    what: str
    parameters: int
    trainable: int
    multiply_adds: int  # of one image


class Level(NamedTuple):
    """A level of the pyramid that the RPN sees."""

    stride: int
    size: tuple[int, int]  # height and width of the map
    sizes: Sequence[float]  # of its anchors
    anchors: int


@dataclass
class Summary:
    """What is to be said of a model."""

    parts: list[Part]
    image_size: tuple[int, int]  # height and width after resizing
    canvas_size: tuple[int, int]
    levels: list[Level]
    aspect_ratios: Sequence[float]
    proposals: int
    detections: int
    num_classes: int
    class_names: list[str]  # none where they are unknown


class _MultiplyAdds:
    """Counts the multiply-adds of calls by name."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def __call__(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            output = function(*arguments)
        self.of[name] = counter.get_total_flops() // 2  # it counts two for each multiply-add
        return output


class _StandInPooler(nn.Module):
    """Pooled features of the right shape: a cut from a map has no values without its boxes'."""

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor) -> Tensor:
        """As the poolers: (R, C, P, P)."""
        size = (self.output_size, self.output_size)
        return features[0].new_zeros(len(boxes), features[0].shape[1], *size)


def summarize(rebuilt: Rebuilt) -> Summary:
    """Look at a model, and count one full-size image through it.

    Multiplications and additions are those of convolutions and matrix products; a multiply-add
    counts once. The box head sees as many proposals as the RPN may give in prediction, and the
    mask head as many boxes as the box head may find, so that they do not depend on weights. No
    numbers are computed: it takes a second.

    Args:
        rebuilt: the model, which is left as it is, and its input.

    Raises:
        UserError: the canvas has no room for the image.
    """
    model, description, resize, canvas = rebuilt
    height, width = resize.size((resize.min_size, resize.max_size))
    canvas_height, canvas_width = canvas.size(torch.tensor([height, width])).tolist()
    counts, levels = _count(model, (canvas_height, canvas_width))
    parts = {
        "backbone": _backbone_name(description.model["backbone"]),
        "neck": type(model.neck).__name__,
        "rpn": type(model.rpn).__name__,
        "box_head": _head_name(model.box_head),
    }
    if model.mask_head is not None:
        parts["mask_head"] = _head_name(model.mask_head)
    return Summary(
        parts=[_part(name, what, model, counts[name]) for name, what in parts.items()],
        image_size=(height, width),
        canvas_size=(canvas_height, canvas_width),
        levels=levels,
        aspect_ratios=model.rpn.anchors.aspect_ratios,
        proposals=model.rpn.selector.num_proposals,
        detections=model.box_head.selector.num_detections,
        num_classes=len(model.class_names),
        class_names=description.class_names,
    )


@torch.no_grad()
def _count(model: Detector, canvas: tuple[int, int]) -> tuple[dict[str, int], list[Level]]:
    """The multiply-adds of each part, and the RPN's levels."""
    num_proposals, num_detections = (
        model.rpn.selector.num_proposals,
        model.box_head.selector.num_detections,
    )
    model = copy.deepcopy(model).eval().to("meta")  # shapes alone
    box_head, mask_head = model.box_head, model.mask_head
    count = _MultiplyAdds()
    with torch.device("meta"):
        images = torch.zeros(1, model.backbone.pixels.channels, *canvas)
        features = count("backbone", model.backbone, images)
        features = count("neck", model.neck, features)
        output = count("rpn", model.rpn, features, canvas)
        box_head.roi_features.pooler = _StandInPooler(box_head.roi_features.pooler.output_size)
        box_head.selector = lambda scores, boxes, valid: None
        proposals = torch.zeros(1, num_proposals, 4)
        valid = torch.ones(1, num_proposals, dtype=torch.bool)
        count("box_head", box_head.predict, features, proposals, valid, torch.zeros(1, 4))
        if mask_head is not None:
            mask_head.roi_features.pooler = _StandInPooler(
                mask_head.roi_features.pooler.output_size
            )
            image = torch.zeros(num_detections, dtype=torch.int64)
            boxes, labels = torch.zeros(num_detections, 4), torch.ones_like(image)
            count("mask_head", mask_head, features, boxes, image, labels)
    levels = [
        Level(stride, (map_.shape[2], map_.shape[3]), sizes, anchors)
        for stride, map_, sizes, anchors in zip(
            model.rpn.strides, features, model.rpn.anchors.sizes, output.level_sizes, strict=True
        )
    ]
    return count.of, levels


def _part(name: str, what: str, model: Detector, multiply_adds: int) -> Part:
    parameters = list(model.get_submodule(name).parameters())
    return Part(
        name=name,
        what=what,
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        multiply_adds=multiply_adds,
    )


def _backbone_name(config: dict[str, Any]) -> str:
    options = [f"{key} {config[key]}" for key in _BACKBONE_OPTIONS if config.get(key) is not None]
    return ", ".join([config["_target_"].rpartition(".")[2], *options])


def _head_name(head: Any) -> str:
    """The head's class, its pooler's and its trunk's."""
    branches = getattr(head, "branches", None)
    trunk = (getattr(head, "branch", head) if branches is None else branches[0]).trunk
    stages = "" if branches is None else f"{len(branches)} x "
    pooler = f"{type(head.roi_features.pooler).__name__} {head.roi_features.pooler.output_size}"
    return f"{type(head).__name__}, {pooler}, {stages}{type(trunk).__name__}"


def render(summary: Summary) -> list[Table | Text]:
    """What the console shows, one below the other."""
    (height, width), (canvas_height, canvas_width) = summary.image_size, summary.canvas_size
    names = ", ".join(summary.class_names[:_NAMES_SHOWN])
    if summary.num_classes > _NAMES_SHOWN:
        names += ", ..."
    facts = {
        "input": f"{height} x {width} (height x width of a full-size image), "
        f"canvas {canvas_height} x {canvas_width}",
        "proposals": f"{summary.proposals} in prediction",
        "detections": f"{summary.detections} at most",
        "classes": f"{summary.num_classes}{f': {names}' if summary.class_names else ''}",
    }
    return [
        _parts_table(summary.parts),
        Text(
            "GFLOPs: 10^9 multiply-adds of convolutions and matrix products for one full-size "
            f"image, {summary.proposals} proposals and {summary.detections} detections\n"
        ),
        _anchors_table(summary),
        *(Text(f"{name}: {fact}") for name, fact in facts.items()),
    ]


def _parts_table(parts: list[Part]) -> Table:
    table = Table("part", "what", box=box.SIMPLE_HEAD, show_footer=True)
    rows = [(part.parameters, part.trainable, part.multiply_adds) for part in parts]
    totals = _numbers(*(sum(column) for column in zip(*rows, strict=True)))
    table.columns[0].footer = "total"
    for header, total in zip(("parameters", "trainable", "GFLOPs"), totals, strict=True):
        table.add_column(header, total, justify="right", no_wrap=True)
    for part, row in zip(parts, rows, strict=True):
        table.add_row(part.name, escape(part.what), *_numbers(*row))
    return table


def _numbers(parameters: int, trainable: int, multiply_adds: int) -> tuple[str, str, str]:
    return f"{parameters:,}", f"{trainable:,}", f"{multiply_adds / 1e9:.2f}"


def _anchors_table(summary: Summary) -> Table:
    table = Table("stride", "map", "anchor sizes", "ratios", box=box.SIMPLE_HEAD, show_footer=True)
    table.columns[0].footer = "total"
    total = sum(level.anchors for level in summary.levels)
    table.add_column("anchors", f"{total:,}", justify="right", no_wrap=True)
    ratios = ", ".join(f"{ratio:g}" for ratio in summary.aspect_ratios)
    for stride, (height, width), sizes, anchors in summary.levels:
        sides = ", ".join(f"{side:g}" for side in sizes)
        table.add_row(str(stride), f"{height} x {width}", sides, ratios, f"{anchors:,}")
    return table
