"""A step of training Mask R-CNN (ResNet-50-FPN): this project against torchvision.

python benchmarks/training_step.py --quick --profile    # two CPU cores
python benchmarks/training_step.py --profile            # a GPU
"""

import warnings
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from breakdown import print_breakdown
from contenders import our_model, scene, torchvision_model
from turns import in_turns, peak_megabytes, report

QUICK = ((320, 416), [9, 5])
FULL = ((800, 1344), [60, 9, 7, 6, 5, 5, 4, 3, 3, 2, 2, 2, 1, 1, 1, 1])  # 7 an image
PEER = "torchvision"


def step_of(name: str, size: tuple[int, int], num_objects: list[int]) -> Callable[[], None]:
    """One contender's step: losses, gradients, optimizer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = scene(size, num_objects, device)
    peer = torchvision_model(size)
    model = (peer if name == PEER else our_model(peer)).to(device).train()
    if name == "compiled":
        model.compile_parts()
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=1e-5,
        momentum=0.9,
        weight_decay=1e-4,
        fused=True,  # both: it is torch's, and no part of either model
    )

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            if name == PEER:
                losses = model(data.images, [dict(target) for target in data.targets])
            else:
                losses = model.loss(data.batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step.model = model  # type: ignore[attr-defined]
    return step


def host_syncs(step: Callable[[], None]) -> int:
    """How often the host waits for the GPU in a step."""
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def main(
    quick: Annotated[bool, typer.Option(help="Small images, for two CPU cores.")] = False,
    profile: Annotated[bool, typer.Option(help="Say where the time goes.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each has a turn.")] = 7,
    compiled: Annotated[bool, typer.Option(help="Also with torch.compile.")] = True,
) -> None:
    """Time a training step of each contender in turns."""
    size, num_objects = QUICK if quick else FULL
    names = ["ours", *(["compiled"] if compiled else []), PEER]
    steps = {name: step_of(name, size, num_objects) for name in names}
    seconds = in_turns(steps, rounds=rounds, repeats=1 if quick else 5, warmup=2 if quick else 5)
    figures = {}
    if torch.cuda.is_available():
        figures["host_syncs"] = {name: host_syncs(step) for name, step in steps.items()}
    if profile:
        figures["breakdown"] = {
            name: print_breakdown(name, step, step.model)  # type: ignore[attr-defined]
            for name, step in steps.items()
            if name != "compiled"  # labels would make other kernels of it
        }
    del steps
    report(
        f"training step, batch {len(num_objects)}, {size[0]}x{size[1]}",
        seconds,
        peer=PEER,
        work=len(num_objects),
        unit="images",
        megabytes={name: peak_megabytes(step_of, name, size, num_objects) for name in names},
        **figures,
    )


if __name__ == "__main__":
    typer.run(main)
