"""Contenders that do the same work in turns, and the table and JSON line that tell of it."""

import ctypes
import gc
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
# Real photos, which the project does not carry.
SHARED = Path(os.environ.get("MRCNN_SHARED", ROOT.parent / "shared"))
PACKAGES = ("torch", "torchvision", "torchmetrics", "pycocotools", "hotcoco")
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def device_name() -> str:
    """The GPU, or the CPU and how many threads torch uses of it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def _seconds(work: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(
    contenders: dict[str, Callable[[], Any]], *, rounds: int, repeats: int = 1, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each contender's work, one number a round; within a round they take turns.

    Args:
        contenders: by name, what is timed.
        rounds: how often all of them have a turn.
        repeats: the work of a turn, done so often.
        warmup: untimed turns before the first round.
    """
    for _ in range(warmup):
        for work in contenders.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            gc.collect()
            seconds[name].append(
                _seconds(lambda: [contenders[name]() for _ in range(repeats)]) / repeats  # noqa: B023
            )
    return seconds


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a module gives in a new process, which has nothing that others left."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def _peak_on_host(make: Callable[..., Callable[[], Any]], *args: Any) -> float:
    work = make(*args)
    work()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building left behind is not the work's
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    work()
    match = PEAK.search(Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else float("nan")


def peak_megabytes(make: Callable[..., Callable[[], Any]], *args: Any) -> float:
    """The most memory that a contender's work holds: of the GPU, or of a process of its own.

    Args:
        make: makes the work from `args`; a function of a module, for another process.
        args: its arguments.
    """
    if not torch.cuda.is_available():
        return float(in_own_process(_peak_on_host, make, *args))
    work = make(*args)
    work()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() / 2**20


def report(
    title: str,
    seconds: dict[str, list[float]],
    *,
    peer: str,
    work: int,
    unit: str,
    megabytes: dict[str, float] | None = None,
    **figures: Any,
) -> None:
    """Print the table, and the JSON object as the last line.

    Args:
        title: of the table.
        seconds: from `in_turns`.
        peer: the contender that the others are compared with.
        work: units of work in a turn.
        unit: of the work, such as images.
        megabytes: peak memory by contender.
        figures: what else belongs into the JSON object.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    for column in ("median", "spread", f"{unit}/s", "ratio", "peak memory"):
        table.add_column(column, justify="right")
    results = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        ratio = statistics.median(seconds[peer]) / median
        memory = (megabytes or {}).get(name)
        results[name] = {
            "median_s": round(median, 5),
            "min_s": round(min(times), 5),
            "max_s": round(max(times), 5),
            f"{unit}_per_s": round(work / median, 3),
            "ratio": round(ratio, 3),
            "peak_mb": None if memory is None else round(memory, 1),
        }
        table.add_row(
            name,
            _duration(median),
            f"{_duration(min(times))} to {_duration(max(times))}",
            f"{work / median:.2f}",
            f"{ratio:.2f}",
            "" if memory is None else f"{memory:.0f} MB",
        )
    Console(width=110).print(table)
    first = next(name for name in seconds if name != peer)
    print(
        json.dumps(
            {
                "benchmark": title,
                "ratio": results[first]["ratio"],
                "peer": peer,
                "device": device_name(),
                "versions": {name: version(name) for name in PACKAGES},
                "commit": _commit(),
                "results": results,
                **figures,
            }
        ),
        flush=True,
    )


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
