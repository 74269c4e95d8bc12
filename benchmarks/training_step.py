"""A step of training Mask R-CNN (ResNet-50-FPN): this project against torchvision.

    python benchmarks/training_step.py --quick --profile    # two CPU cores
    python benchmarks/training_step.py --profile            # a GPU

Ours is trained in three ways: plain; its parts compiled (`parts`); all of it one graph (`step`).
"""

import gc
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from breakdown import host_calls, print_breakdown
from contenders import our_model, scene, torchvision_model, without_kernels
from torch import Tensor
from torch.optim import Optimizer
from turns import Started, in_turns, kept_going, peak_megabytes, recorded, report, started

from mrcnn_lightning.training.compiled_step import CompiledStep

Out = Path | None
PEER = "torchvision"
WAYS = ("plain", "parts", "step")
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Objects of the images, 7 each; any half of them has crowded and empty scenes.
OBJECTS = [60, 1, 2, 1, 2, 1, 2, 1, 9, 7, 6, 5, 5, 4, 3, 3]


@dataclass
class Setting:
    """What both sides do."""

    num_objects: list[int]  # of each image
    size: tuple[int, int]  # height and width of the canvas
    precision: str
    is_small: bool = False

    def __str__(self) -> str:
        height, width = self.size
        return f"batch {len(self.num_objects)}, {height}x{width}, {self.precision}"


QUICK = Setting([9, 5], (320, 416), "float32")
FULL = Setting(OBJECTS, (800, 1344), "bf16")
DRY = Setting([2], (64, 96), "bf16", is_small=True)


def _loss(
    name: str, model: Any, optimizer: Optimizer
) -> tuple[Callable[..., dict[str, Tensor]], Callable[[], None]]:
    """A contender's losses of a scene, and how it forgets its gradients, as in training."""
    if name == PEER:
        return (
            lambda data: model(data.images, [dict(target) for target in data.targets]),
            optimizer.zero_grad,
        )
    if name == "parts":
        model.compile_parts()
    if name == "step":
        step = CompiledStep(model)
        return lambda data: step(data.batch), partial(step.zero_grad, optimizer)
    return lambda data: model.loss(data.batch), optimizer.zero_grad


def step_of(name: str, setting: Setting) -> Callable[[], None]:
    """One contender's step: losses, gradients, optimizer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = scene(setting.size, setting.num_objects, device)
    peer = torchvision_model(setting.size, is_small=setting.is_small)
    model = (
        (peer if name == PEER else our_model(peer, is_small=setting.is_small)).to(device).train()
    )
    optimizer = torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=1e-5,
        momentum=0.9,
        weight_decay=1e-4,
        fused=True,  # both: it is torch's, and no part of either model
    )
    scaler = torch.amp.GradScaler(device.type, enabled=setting.precision == "fp16")
    # CPUs take minutes in fp16: there it is bf16 with the losses scaled.
    is_slow = device.type == "cpu" and setting.precision == "fp16"
    dtype = PRECISIONS["bf16" if is_slow else setting.precision]
    loss, zero_grad = _loss(name, model, optimizer)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            losses = loss(data)
        zero_grad()
        scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

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


def measure(
    way: str, peer: Started, setting: Setting, *, rounds: int, repeats: int, weighs: bool, out: Out
) -> Started:
    """Time one way of ours and the peer in turns, and report.

    Args:
        way: one of WAYS.
        peer: at work already.
        setting: of both.
        rounds: how often each has a turn.
        repeats: steps of a turn.
        weighs: whether peak memory is measured on a host without a GPU, in processes of their own.
        out: see `report`.

    Returns:
        Ours, at work.
    """
    torch.compiler.reset()  # a second shape would make kernels for any shape
    contenders = {way: started(step_of, way, setting), PEER: peer}
    seconds = in_turns(
        {name: contender.work for name, contender in contenders.items()},
        rounds=rounds,
        repeats=repeats,
    )
    report(
        f"training step, {setting}",
        seconds,
        peer=PEER,
        work=len(setting.num_objects),
        unit="images",
        megabytes={
            name: peak_megabytes(step_of, name, setting) if weighs else contender.megabytes
            for name, contender in contenders.items()
        },
        of_each={
            name: {"first_step_s": round(contender.first_s, 2)}
            for name, contender in contenders.items()
        },
        out=out,
    )
    return contenders[way]


def examine(name: str, contender: Started, setting: Setting, *, profile: bool, out: Out) -> None:
    """How often the host waits and launches in a step, and where the time goes.

    Args:
        name: of the contender.
        contender: at work.
        setting: of it.
        profile: whether to say where the time goes.
        out: see `report`.
    """
    content: dict[str, Any] = {"benchmark": f"training step, {setting}", "peer": PEER}
    calls = host_calls(contender.work)
    if torch.cuda.is_available():
        calls["host_syncs"] = host_syncs(contender.work)
    recorded(content | {"results": {name: calls}}, out)
    if profile and name in ("plain", PEER):  # labels would make other kernels of what is compiled
        shares = print_breakdown(name, contender.work, contender.work.model)  # type: ignore[attr-defined]
        recorded(content | {"breakdown": {name: shares}}, out)


def _known(names: list[str], choices: Iterable[str], option: str) -> list[str]:
    unknown = set(names) - set(choices)
    if unknown:
        raise typer.BadParameter(f"{option} {unknown.pop()} is not one of {', '.join(choices)}")
    return names


def main(
    quick: Annotated[bool, typer.Option(help="Small images, for two CPU cores.")] = False,
    dry_run: Annotated[bool, typer.Option(help="A small model, once, nothing compiled.")] = False,
    batch: Annotated[list[int] | None, typer.Option(help="Images a step; several times.")] = None,
    precision: Annotated[list[str] | None, typer.Option(help=", ".join(PRECISIONS))] = None,
    way: Annotated[list[str] | None, typer.Option(help=", ".join(WAYS))] = None,
    profile: Annotated[bool, typer.Option(help="Say where the time goes.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each has a turn.")] = 7,
    out: Annotated[Out, typer.Option(help="Append the JSON objects to it.")] = None,
) -> None:
    """Time a training step of each way and of the peer in turns."""
    base = DRY if dry_run else QUICK if quick else FULL
    on_gpu = torch.cuda.is_available()
    ways = _known(way or list(WAYS), WAYS, "--way")
    precisions = _known(precision or [base.precision], PRECISIONS, "--precision")
    batches = batch if batch and not dry_run else [len(base.num_objects)]
    for number, kind in product(batches, precisions):
        objects = base.num_objects if number == len(base.num_objects) else _objects(number)
        setting = replace(base, num_objects=objects, precision=kind)
        with kept_going(f"training step, {setting}", out):
            peer = started(step_of, PEER, setting)
            for each in ways:
                with kept_going(f"training step, {setting}: {each}", out), _compiler(dry_run):
                    ours = measure(
                        each,
                        peer,
                        setting,
                        rounds=1 if dry_run else rounds,
                        repeats=1 if dry_run or quick else 5,
                        weighs=not on_gpu and not dry_run,
                        out=out,
                    )
                    examine(each, ours, setting, profile=profile, out=out)
                    del ours
                gc.collect()
            examine(PEER, peer, setting, profile=profile, out=out)


def _objects(batch: int) -> list[int]:
    return (OBJECTS * (1 + batch // len(OBJECTS)))[:batch]


def _compiler(dry_run: bool) -> AbstractContextManager[None]:
    return without_kernels() if dry_run else nullcontext()


if __name__ == "__main__":
    typer.run(main)
