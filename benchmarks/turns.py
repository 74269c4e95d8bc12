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
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
END_OF_AN_ERROR = 1500  # characters


def device_name() -> str:
    """The GPU, or the CPU and how many threads torch uses of it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def _seconds(work: Callable[[], Any], *, on_device: bool = False) -> float:
    """How long work takes: by the host's clock, or from event to event on a GPU."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    torch.cuda.synchronize()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    start = time.perf_counter()
    events[0].record()
    work()
    events[1].record()
    torch.cuda.synchronize()
    on_host = time.perf_counter() - start
    return events[0].elapsed_time(events[1]) / 1000 if on_device else on_host


def in_turns(
    contenders: dict[str, Callable[[], Any]],
    *,
    rounds: int,
    repeats: int = 1,
    warmup: int = 1,
    on_device: bool = False,
) -> dict[str, list[float]]:
    """Seconds of each contender's work, one number a round; within a round they take turns.

    Args:
        contenders: by name, what is timed.
        rounds: how often all of them have a turn.
        repeats: the work of a turn, done so often.
        warmup: untimed turns before the first round.
        on_device: whether a GPU's own clock counts, for work that ends on it.
    """
    for _ in range(warmup):
        for work in contenders.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        names = list(contenders)
        for name in names if number % 2 == 0 else reversed(names):
            gc.collect()
            work = partial(_again, contenders[name], repeats)
            seconds[name].append(_seconds(work, on_device=on_device) / repeats)
    return seconds


def _again(work: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        work()


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
    return started(make, *args).megabytes or 0.0


@dataclass
class Started:
    """A contender that had its first turns."""

    work: Callable[..., Any]
    first_s: float  # the first turn, in which kernels are chosen and compiled
    megabytes: float | None  # the most that a later turn holds on a GPU, with what making it left


def started(make: Callable[..., Callable[..., Any]], *args: Any) -> Started:
    """Make a contender's work and do it, twice on a GPU.

    Args:
        make: makes the work from `args`.
        args: its arguments.
    """
    on_gpu = torch.cuda.is_available()
    gc.collect()
    before = torch.cuda.memory_allocated() if on_gpu else 0
    work = make(*args)
    first_s = _seconds(work)
    if not on_gpu:
        return Started(work, first_s, None)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return Started(work, first_s, (torch.cuda.max_memory_allocated() - before) / 2**20)


def recorded(content: dict[str, Any], out: Path | None) -> None:
    """Print a JSON object with where it was measured, and append it to a file at once."""
    where = {
        "device": device_name(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
    }
    line = json.dumps(content | where)
    print(line, flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(line + "\n")


@contextmanager
def kept_going(benchmark: str, out: Path | None) -> Iterator[None]:
    """An error of one measurement is written in its place, and the next one has its turn."""
    try:
        yield
    except Exception:
        error = traceback.format_exc()[-END_OF_AN_ERROR:]
        print(error, flush=True)
        recorded({"benchmark": benchmark, "error": error}, out)


def report(
    title: str,
    seconds: dict[str, list[float]],
    *,
    peer: str,
    work: int,
    unit: str,
    megabytes: dict[str, float | None] | None = None,
    of_each: dict[str, dict[str, Any]] | None = None,
    out: Path | None = None,
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
        of_each: what else is known of a contender.
        out: a file that the JSON object is appended to.
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
            **(of_each or {}).get(name, {}),
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
    content = {
        "benchmark": title,
        "ratio": results[first]["ratio"],
        "peer": peer,
        "results": results,
        **figures,
    }
    recorded(content, out)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _commit() -> str:
    # A copy of the tree has no history: gpu.sh says where it is from.
    if "BENCHMARK_COMMIT" in os.environ:
        return os.environ["BENCHMARK_COMMIT"]
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
