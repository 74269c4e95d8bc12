"""Drawings of curves and tables, without a screen.

K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# More are drawn without names.
_MOST_NAMES = 12
_MOST_NUMBERS = 20
_DOTS_PER_INCH = 100


def draw_curves(title: str, curves: Mapping[str, Any]) -> Image.Image:
    """Precision over recall, a panel for each IoU: the mean in black, each class in a colour.

    Args:
        title: of the picture.
        curves: see `PrecisionRecall`.
    """
    ious = [key for key in curves if key != "recall"]
    figure = Figure(figsize=(4.5 * len(ious), 4.2), layout="constrained")
    for panel, key in zip(np.atleast_1d(figure.subplots(1, len(ious))), ious, strict=True):
        _draw_panel(panel, f"{title} at IoU {key}", curves["recall"], curves[key])
    return _as_picture(figure)


def _draw_panel(
    panel: Axes, title: str, recall: Sequence[float], precision: Mapping[str, Any]
) -> None:
    classes, mean = precision["classes"], precision["mean"]
    colors = colormaps["tab20"](np.arange(len(classes)) % 20)
    for name, color in zip(classes, colors, strict=True):
        panel.plot(recall, classes[name], color=color, linewidth=1.2, label=name)
    if mean:
        label = f"mean, AP {np.mean(mean):.3f}"
        panel.plot(recall, mean, color="black", linewidth=2.5, label=label)
    panel.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    panel.grid(alpha=0.3)
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        shown = handles[-1:] if len(classes) > _MOST_NAMES else handles[::-1]
        panel.legend(shown, labels[-1:] if len(classes) > _MOST_NAMES else labels[::-1])


def draw_confusion(
    title: str, matrix: npt.NDArray[np.int64], class_names: Sequence[str]
) -> Image.Image:
    """Counts of true class (rows) by found class (columns), coloured by their share of the row.

    Args:
        title: of the picture.
        matrix: (K + 1, K + 1), the background last.
        class_names: of the K classes.
    """
    names = [*class_names, "background"]
    side = min(max(4.5, 1.5 + 0.55 * len(names)), 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    panel = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=panel, label="share of the row", shrink=0.8)
    size = 9 if len(names) <= _MOST_NUMBERS else 6
    panel.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=size)
    panel.set_yticks(range(len(names)), names, fontsize=size)
    panel.set(title=title, xlabel="found", ylabel="true")
    if len(names) <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if shares[row, column] > 0.5 else "black"
            panel.text(column, row, str(count), ha="center", va="center", color=color)
    return _as_picture(figure)


def _as_picture(figure: Figure) -> Image.Image:
    figure.set_dpi(_DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
