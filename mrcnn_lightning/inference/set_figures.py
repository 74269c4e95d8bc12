"""Figures of a data set: its classes, and how large, how many and how long its objects are.

R objects that are learnt from, K classes, N images.
"""

from collections.abc import Sequence
from io import StringIO

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_MOST_CLASSES = 30
_BLUE, _ORANGE = "#3b6ea5", "#d9822b"
# COCO's bounds of small, medium and large objects, in pixels a side.
_SMALL, _LARGE = 32, 96


def class_figure(names: Sequence[str], numbers: npt.NDArray[np.int64]) -> str:
    """Objects a class, most first, as SVG; of many classes, the first and the last.

    Args:
        names: of K classes.
        numbers: (K,) objects.
    """
    order = np.argsort(-numbers, kind="stable")
    title = f"{len(names)} classes" if len(names) > 1 else "1 class"
    if len(order) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
        title += f": the {half} most and the {half} least frequent"
    figure = Figure(figsize=(6, 1.1 + 0.2 * len(order)), layout="constrained")
    panel = figure.subplots()
    # A name may be there twice in a damaged file: bars stand at numbers, not at names.
    bars = panel.barh(np.arange(len(order)), numbers[order], color=_BLUE, height=0.75)
    panel.bar_label(bars, [f" {number:,}" for number in numbers[order]], fontsize=8)
    labels = [_plain(names[row][:28]) for row in order]
    panel.set_yticks(np.arange(len(order)), labels, fontsize=8)
    panel.set(title=title, xlabel="objects", xlim=(0, max(1, numbers.max(initial=0)) * 1.15))
    panel.set_ylim(len(order) - 0.4, -0.6)
    return _as_svg(figure)


def size_figure(scaled: npt.NDArray[np.float64], anchors: Sequence[float], at: str) -> str:
    """The sides of objects in training, beside those of anchors, as SVG.

    Args:
        scaled: (R, 4) boxes x1, y1, x2, y2 at the size of training.
        anchors: sides of the anchors.
        at: the size of training.
    """
    sides = np.sqrt((scaled[:, 2:] - scaled[:, :2]).prod(axis=1))
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    panel = figure.subplots()
    _log_histogram(panel, sides, low=2, high=2048, num_bins=40)
    for number, anchor in enumerate(sorted(set(anchors))):
        label = "sides of anchors" if number == 0 else None
        panel.axvline(anchor, color=_ORANGE, linestyle="--", linewidth=1, label=label)
    panel.set(title=f"sizes of objects at {at}", xlabel="square root of the box's area, pixels")
    parts = [(sides < _SMALL).mean(), (sides >= _LARGE).mean()] if len(sides) else [0, 0]
    text = f"under {_SMALL}: {parts[0]:.0%}\n{_LARGE} and more: {parts[1]:.0%}"
    panel.text(0.02, 0.96, text, transform=panel.transAxes, va="top", fontsize=8)
    panel.legend(fontsize=8, loc="upper right", frameon=False)
    return _as_svg(figure)


def ratio_figure(scaled: npt.NDArray[np.float64], ratios: Sequence[float]) -> str:
    """Height over width of objects, beside those of anchors, as SVG.

    Args:
        scaled: (R, 4) boxes x1, y1, x2, y2.
        ratios: of the anchors.
    """
    sides = scaled[:, 2:] - scaled[:, :2]
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    panel = figure.subplots()
    _log_histogram(panel, sides[:, 1] / sides[:, 0], low=1 / 16, high=16, num_bins=40)
    for number, ratio in enumerate(sorted(set(ratios))):
        label = "ratios of anchors" if number == 0 else None
        panel.axvline(ratio, color=_ORANGE, linestyle="--", linewidth=1, label=label)
    panel.set_xticks([1 / 16, 1 / 4, 1, 4, 16], ["1/16", "1/4", "1", "4", "16"])
    panel.set(title="aspect ratios", xlabel="height over width")
    panel.legend(fontsize=8, loc="upper right", frameon=False)
    return _as_svg(figure)


def crowding_figure(numbers: npt.NDArray[np.int64]) -> str:
    """Objects an image, as SVG.

    Args:
        numbers: (N,) objects.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    panel = figure.subplots()
    highest = int(numbers.max(initial=1))
    width = max(1, -(-highest // 40))
    panel.hist(numbers, bins=np.arange(-0.5, highest + width + 0.5, width).tolist(), color=_BLUE)
    mean = numbers.mean() if len(numbers) else 0
    panel.set(title="objects an image", xlabel="objects", ylabel="images")
    panel.text(
        0.98, 0.96, f"mean {mean:.1f}, most {highest:,}", transform=panel.transAxes, ha="right",
        va="top", fontsize=8,
    )  # fmt: skip
    return _as_svg(figure)


def _log_histogram(
    panel: Axes, values: npt.NDArray[np.float64], *, low: float, high: float, num_bins: int
) -> None:
    """Values on a logarithmic axis; what is beyond its ends is counted at them."""
    bins = np.geomspace(low, high, num_bins + 1)
    panel.hist(values.clip(low, high), bins=bins.tolist(), color=_BLUE)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlim(low, high)
    panel.set_ylabel("objects")


def _plain(text: str) -> str:
    """A text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _as_svg(figure: Figure) -> str:
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    file = StringIO()
    # Text stays text; nothing in the file tells when it was made.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mrcnn", "font.family": "sans-serif"}):
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return file.getvalue()
