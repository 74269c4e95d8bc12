"""Photos through Mask R-CNN (ResNet-50-FPN), to boxes and masks in the photo's own pixels.

    python benchmarks/inference.py --quick      # one photo of 640x480, two CPU cores
    python benchmarks/inference.py              # batches of 8, a GPU, bf16; --batch 1

Resizing to 800/1333 and pasting belong to the work of both. Outputs are compared first.
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from contenders import our_model, torchvision_model, without_kernels
from torch import Tensor
from turns import SHARED, in_turns, kept_going, peak_megabytes, report, started

from mrcnn_lightning.data.images import read_image
from mrcnn_lightning.data.sizing import PadToMultiple, Resize, shorter_side
from mrcnn_lightning.inference.predictor import Predictor
from mrcnn_lightning.results.rle import decode_masks

PEER = "torchvision"
PHOTOS = SHARED / "data" / "coco_tiny" / "val2017"
SIZE = (480, 640)
Found = list[tuple[Tensor, Tensor, Tensor, Tensor]]  # boxes, scores, labels, masks of each image


def photos(num: int) -> list[Tensor]:
    """Images (3, 480, 640) uint8: real ones where they are at hand, else smooth noise."""
    files = sorted(PHOTOS.glob("*.jpg")) if PHOTOS.is_dir() else []
    images = [image for image in map(read_image, files) if tuple(image.shape[1:]) == SIZE]
    torch.manual_seed(0)
    while len(images) < num:
        noise = torch.rand(1, 3, SIZE[0] // 16, SIZE[1] // 16) * 255
        image = torch.nn.functional.interpolate(noise, SIZE, mode="bilinear")[0]
        images.append(image.to(torch.uint8))
    return images[:num]


@torch.no_grad()
def spread_outputs(model: Any, image: Tensor) -> None:
    """Scale the last layers so that there are many different proposals and detections."""
    wanted = {
        model.rpn.head.cls_logits: 2.0,
        model.rpn.head.bbox_pred: 0.3,
        model.roi_heads.box_predictor.cls_score: 2.0,
        model.roi_heads.box_predictor.bbox_pred: 1.0,
        model.roi_heads.mask_predictor.mask_fcn_logits: 2.0,
    }
    for layer, spread in wanted.items():
        seen: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _, __, output: seen.append(output))  # noqa: B023
        model([image / 255])
        hook.remove()
        layer.weight *= spread / seen[0].std()


def contender(
    name: str, num: int, size: tuple[int, int], is_small: bool = False
) -> Callable[..., Found]:
    """What finds objects in images; resized to `size` (shorter side, longest side)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = photos(num)
    peer = torchvision_model(size, is_small=is_small).eval()
    spread_outputs(peer, images[0])
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    @torch.inference_mode()
    def find_by_peer(images: list[Tensor] = images) -> Found:
        with autocast:
            found = peer([image.to(device) / 255 for image in images])
        return [
            (each["boxes"].cpu(), each["scores"].cpu(), each["labels"].cpu(), masks[:, 0])
            for each in found
            for masks in [(each["masks"] > 0.5).cpu()]
        ]

    if name == PEER:
        peer.to(device)
        return find_by_peer
    model = our_model(peer, is_small=is_small).eval()
    predictor = Predictor(
        model,
        category_ids=list(range(1, 81)),
        resize=Resize(rule=shorter_side, min_size=size[0], max_size=size[1]),
        canvas=PadToMultiple(multiple=32),
        show_score=0.5,
        precision="bf16" if device.type == "cuda" else "32",
        compiled=name == "compiled",
    )

    def find(images: list[Tensor] = images) -> Found:
        return [
            (each.boxes, each.scores, each.labels, decode_masks(each.rles or [], each.size))
            for each in predictor.predict_batch(images)
        ]

    return find


def compare(ours: Found, theirs: Found) -> dict[str, float]:
    """How far two contenders' detections of the same images are apart.

    Args:
        ours: best first.
        theirs: likewise; matched by class and nearest box.
    """
    unmatched, box_distance, score_distance, pixels, all_pixels = 0, 0.0, 0.0, 0, 0
    for (boxes, scores, labels, masks), other in zip(ours, theirs, strict=True):
        unmatched += abs(len(boxes) - len(other[0]))
        for box, score, label, mask in zip(boxes, scores, labels, masks, strict=True):
            distance = (other[0] - box).abs().amax(1) + (other[2] != label) * 1e9
            nearest = int(distance.argmin())
            if distance[nearest] > 1:
                unmatched += 1
                continue
            box_distance = max(box_distance, float(distance[nearest]))
            score_distance = max(score_distance, abs(float(other[1][nearest] - score)))
            pixels += int((other[3][nearest] != mask).sum())
            all_pixels += int(mask.sum())
    return {
        "detections": sum(len(each[0]) for each in ours),
        "unmatched": unmatched,
        "largest_box_distance_px": round(box_distance, 6),
        "largest_score_distance": round(score_distance, 8),
        "mask_pixels_differing": round(pixels / max(all_pixels, 1), 8),
    }


def measure(
    num: int,
    size: tuple[int, int],
    is_small: bool,
    *,
    names: list[str],
    rounds: int,
    out: Path | None,
) -> None:
    """Compare what the contenders find in one photo, and time them in turns on a batch."""
    torch.compiler.reset()
    on_gpu = torch.cuda.is_available()
    # Both resize a photo of the network's size to itself, so that only the models are compared.
    as_it_is = (size[0], -(-size[0] * SIZE[1] // SIZE[0] // 32) * 32)
    same = [
        torch.nn.functional.interpolate(image[None].float(), as_it_is)[0].byte()
        for image in photos(1)
    ]
    finders = {name: started(contender, name, num, size, is_small) for name in names}
    theirs = finders[PEER].work(same)
    # Another size would take the compiled one more minutes.
    compared = [name for name in names if name != PEER and not (on_gpu and name == "compiled")]
    differences = {name: compare(finders[name].work(same), theirs) for name in compared}
    print(differences)
    if any(each["unmatched"] for each in differences.values()) and not on_gpu:
        raise RuntimeError("the contenders do not find the same")
    seconds = in_turns({name: finder.work for name, finder in finders.items()}, rounds=rounds)
    report(
        f"prediction, batch {num}, {SIZE[1]}x{SIZE[0]} at {size[0]}/{size[1]}",
        seconds,
        peer=PEER,
        work=num,
        unit="images",
        megabytes=None
        if is_small
        else {
            name: finder.megabytes
            if on_gpu
            else peak_megabytes(contender, name, num, size, is_small)
            for name, finder in finders.items()
        },
        of_each={name: {"first_s": round(each.first_s, 2)} for name, each in finders.items()},
        out=out,
        batch=num,
        differences=differences,
        real_photos=PHOTOS.is_dir(),
    )


def main(
    quick: Annotated[bool, typer.Option(help="One photo, for two CPU cores.")] = False,
    dry_run: Annotated[bool, typer.Option(help="A small model, once, nothing compiled.")] = False,
    batch: Annotated[
        list[int] | None, typer.Option(help="Photos at a time; several times.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often each has a turn.")] = 9,
    compiled: Annotated[bool, typer.Option(help="Also with torch.compile.")] = True,
    out: Annotated[Path | None, typer.Option(help="Append the JSON objects to it.")] = None,
) -> None:
    """Time prediction of each contender in turns."""
    size = (96, 160) if dry_run else (800, 1333)
    # Without the compiled one first: its kernels may take longer than there is time.
    lists = [["ours", PEER], *([["ours", "compiled", PEER]] if compiled else [])]
    batches = batch if batch and not dry_run else [1 if quick or dry_run else 8]
    for num in batches:
        for names in lists if torch.cuda.is_available() else lists[-1:]:
            compiler = without_kernels() if dry_run else nullcontext()
            with kept_going(f"prediction, batch {num}: {names[-2]}", out), compiler:
                measure(num, size, dry_run, names=names, rounds=1 if dry_run else rounds, out=out)


if __name__ == "__main__":
    typer.run(main)
