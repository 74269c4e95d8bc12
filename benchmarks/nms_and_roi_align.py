"""NMS and RoIAlign alone, at the sizes of training and of prediction, against torchvision's.

    python benchmarks/nms_and_roi_align.py              # a GPU, 800x1344
    python benchmarks/nms_and_roi_align.py --dry-run    # once, small, on a CPU

B images, N candidates, R RoIs.
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import torchvision
import typer
from torch import Tensor
from turns import in_turns, kept_going, report

from mrcnn_lightning.models.heads.poolers import RoIAlign
from mrcnn_lightning.ops.nms import batched_nms

PEER = "torchvision"
STRIDES = [4, 8, 16, 32]
CANVAS = (800, 1344)
DRY_CANVAS = (96, 160)
# Images, candidates of each group, groups, boxes kept, IoU; the last has scores above 0.05 alone.
NMS = {
    "proposals in training": (16, 2000, 5, 2000, 0.7),
    "proposals in prediction": (8, 1000, 5, 1000, 0.7),
    "detections of 80 classes": (8, 1000, 80, 100, 0.5),
}
# Images, RoIs of an image, bins a side.
ROI_ALIGN = {"boxes": (16, 512, 7), "masks": (16, 128, 14)}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _scaled(num: int, share: float) -> int:
    return max(1, int(num * share))


def some_boxes(num_images: int, num: int, canvas: tuple[int, int]) -> Tensor:
    """Boxes (B, N, 4) around a few objects an image, as a network finds them."""
    height, width = canvas
    limit = torch.tensor([width, height])
    objects = max(1, num // 20)
    centres = torch.rand(num_images, objects, 2) * limit
    sides = torch.exp(torch.rand(num_images, objects, 2) * 3) * limit / 40
    index = torch.randint(objects, (num_images, num, 1)).expand(-1, -1, 2)
    sides = sides.gather(1, index)
    centres = centres.gather(1, index) + torch.randn(num_images, num, 2) * sides / 8
    sides = sides * torch.exp(torch.randn(num_images, num, 2) / 8)
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], dim=2)
    return torch.minimum(boxes.clamp(min=0), limit.repeat(2)).to(_device())


def time_nms(
    name: str, *, canvas: tuple[int, int], rounds: int, share: float, out: Path | None
) -> None:
    """Ours of the whole batch, torchvision's image by image.

    Args:
        name: of NMS.
        canvas: height and width.
        rounds: of turns.
        share: of the images, and of the candidates.
        out: see `report`.
    """
    num_images, each, num_groups, kept, iou = NMS[name]
    num_images, each = _scaled(num_images, share), _scaled(each, share)
    torch.manual_seed(0)
    boxes = some_boxes(num_images, each * num_groups, canvas)
    groups = torch.arange(num_groups, device=boxes.device).repeat_interleave(each)
    scores = torch.rand(boxes.shape[:2], device=boxes.device)
    if "classes" in name:  # most RoIs have no more than one class that is likely at all
        scores = torch.where(scores > 0.98, scores, -torch.inf)

    def ours() -> Tensor:
        return batched_nms(boxes, scores, groups, iou_threshold=iou, num=kept)[1].sum(1)

    def theirs() -> Tensor:
        found = []
        for image, of_image in zip(boxes, scores, strict=True):
            place = torch.nonzero(of_image > -torch.inf).squeeze(1)
            index = torchvision.ops.batched_nms(image[place], of_image[place], groups[place], iou)
            found.append(len(index[:kept]))
        return torch.tensor(found)

    difference = int((ours().cpu() - theirs()).abs().max())
    seconds = in_turns({"ours": ours, PEER: theirs}, rounds=rounds, repeats=3, on_device=True)
    report(
        f"NMS, {name}, {num_images} images of {each * num_groups} candidates",
        seconds,
        peer=PEER,
        work=num_images,
        unit="images",
        out=out,
        kept=float(ours().float().mean()),
        largest_difference_in_number=difference,
    )


def time_roi_align(
    name: str,
    dtype: str,
    layout: str,
    *,
    canvas: tuple[int, int],
    rounds: int,
    share: float,
    out: Path | None,
) -> None:
    """Forwards alone, and with the gradients of the maps; under autocast, as both are trained.

    Args:
        name: of ROI_ALIGN.
        dtype: of the maps.
        layout: of the maps.
        canvas: height and width.
        rounds: of turns.
        share: of the images, and of the RoIs.
        out: see `report`.
    """
    num_images, num, size = ROI_ALIGN[name]
    num_images, num = _scaled(num_images, share), _scaled(num, share)
    torch.manual_seed(0)
    device, kind = _device(), DTYPES[dtype]
    boxes = some_boxes(num_images, num, canvas)
    image_index = torch.arange(num_images, device=device).repeat_interleave(num)
    maps = [
        torch.randn(num_images, 256, canvas[0] // stride, canvas[1] // stride, device=device)
        .to(kind)
        .contiguous(memory_format=LAYOUTS[layout])
        .requires_grad_()
        for stride in STRIDES
    ]
    pool = RoIAlign(
        strides=STRIDES,
        output_size=size,
        sampling_ratio=2,
        aligned=False,
        canonical_size=224,
        canonical_level=4,
    )
    peer = torchvision.ops.MultiScaleRoIAlign([str(s) for s in STRIDES], size, 2)
    named = {str(stride): level for stride, level in zip(STRIDES, maps, strict=True)}

    def ours() -> Tensor:
        with torch.autocast(device.type, kind, enabled=kind != torch.float32):
            return pool(maps, boxes.flatten(0, 1), image_index)

    def theirs() -> Tensor:
        with torch.autocast(device.type, kind, enabled=kind != torch.float32):
            return peer(named, list(boxes), [canvas] * num_images)

    gradient = torch.randn_like(ours())

    def backwards(forwards: Callable[[], Tensor]) -> Callable[[], list[Tensor]]:
        def both() -> list[Tensor]:
            pooled = forwards()
            return list(torch.autograd.grad(pooled, maps, gradient.to(pooled.dtype)))

        return both

    works = {"forward": (ours, theirs), "and backward": (backwards(ours), backwards(theirs))}
    for direction, (mine, other) in works.items():
        got, wanted = mine(), other()
        pairs = zip(*(x if isinstance(x, list) else [x] for x in (got, wanted)), strict=True)
        distance = max(float((a - b).norm() / b.norm()) for a, b in pairs)
        seconds = in_turns({"ours": mine, PEER: other}, rounds=rounds, repeats=3, on_device=True)
        report(
            f"RoIAlign of {name} {direction}, {num_images}x{num}x{size}x{size}, {dtype}, {layout}",
            seconds,
            peer=PEER,
            work=num_images * num,
            unit="RoIs",
            out=out,
            relative_distance=distance,
        )


def main(
    dry_run: Annotated[bool, typer.Option(help="Few boxes, once, for a CPU.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each has a turn.")] = 7,
    out: Annotated[Path | None, typer.Option(help="Append the JSON objects to it.")] = None,
) -> None:
    """Time both operators, each in turns with its peer."""
    canvas, rounds, share = (DRY_CANVAS, 1, 0.05) if dry_run else (CANVAS, rounds, 1.0)
    for name in NMS:
        with kept_going(f"NMS, {name}", out):
            time_nms(name, canvas=canvas, rounds=rounds, share=share, out=out)
    for name, dtype, layout in product(ROI_ALIGN, DTYPES, LAYOUTS):
        with kept_going(f"RoIAlign of {name}, {dtype}, {layout}", out):
            time_roi_align(name, dtype, layout, canvas=canvas, rounds=rounds, share=share, out=out)


if __name__ == "__main__":
    typer.run(main)
