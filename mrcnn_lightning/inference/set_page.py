"""A data set as one page of HTML that needs nothing beside it: figures, faults, drawn samples."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt

from mrcnn_lightning.data.checking.check import Checked
from mrcnn_lightning.data.checking.faults import Fault
from mrcnn_lightning.data.checking.whole_set import TrainingSize, at_training_size
from mrcnn_lightning.inference.set_figures import (
    class_figure,
    crowding_figure,
    ratio_figure,
    size_figure,
)
from mrcnn_lightning.inference.set_samples import Sample, draw_samples

# Of more, the figure is as high as the others together.
_FEW_CLASSES = 12
_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1240px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; }
.numbers { color: #555; margin-top: .2rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(480px, 1fr)); gap: 1rem;
  align-items: start; }
.tall { grid-row: span 3; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: 1rem; }
figure { margin: 0; }
img { max-width: 100%; height: auto; display: block; margin: auto; }
figcaption { color: #555; font-size: .85rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0;
  border-bottom: 1px solid #eee; overflow-wrap: anywhere; }
td.count { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.places { color: #555; font-size: .85rem; }
td:first-child, th { white-space: nowrap; overflow-wrap: normal; }
.error { color: #b3261e; font-weight: 600; } .warning { color: #8a5a00; font-weight: 600; }
.note { color: #3b6ea5; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="numbers">$numbers</p>
<h2>What is wrong with it</h2>
$faults
<h2>What is in it</h2>
<div class="figures">
$figures
</div>
<h2>Samples, the hard ones first</h2>
<div class="samples">
$samples
</div>
</body>
</html>
""")


def set_page(json: str | Path, checked: Checked, size: TrainingSize) -> str:
    """The page of a set.

    Args:
        json: its file.
        checked: what was found in it; a file that is none of COCO's has faults alone.
        size: of training, with the anchors that objects are drawn beside.
    """
    is_read = checked.objects is not None
    numbers = ", ".join(f"{number:,} {what}" for what, number in checked.numbers().items())
    return _PAGE.substitute(
        title=escape(str(json)),
        numbers=numbers,
        faults=_table(checked.found()),
        figures="\n".join(_figures(checked, size)) if is_read else "",
        samples="\n".join(map(_sample, draw_samples(json, checked))) if is_read else "",
    )


def _table(faults: Sequence[Fault]) -> str:
    if not faults:
        return "<p>Nothing was found.</p>"
    rows = ["<tr><th></th><th>number</th><th>what</th><th>what to do</th></tr>"]
    for fault in faults:
        places = ", ".join(fault.places) + (", ..." if fault.count > len(fault.places) else "")
        cells = (
            f'<td class="{fault.severity}">{fault.severity}</td>',
            f'<td class="count">{fault.count:,}</td>',
            f'<td>{escape(fault.what)}<div class="places">{escape(places)}</div></td>',
            f"<td>{escape(fault.remedy)}</td>",
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _figures(checked: Checked, size: TrainingSize) -> Iterator[str]:
    objects, listed, corners = checked.objects, checked.listed, checked.corners
    assert objects is not None and listed is not None and corners is not None
    rows, scaled = at_training_size(objects, corners, listed, size)
    labels = objects.labels[rows]
    numbers = np.bincount(labels[labels >= 0], minlength=len(listed.classes))
    of_images = np.bincount(objects.images[rows], minlength=len(listed.names))
    cells = np.concatenate([np.zeros((0, 4)), *(level.cells for level in size.levels)])
    sides = cells[:, 2:] - cells[:, :2]
    anchors = _steps(np.sqrt(sides.prod(axis=1)))
    ratios = _steps(sides[:, 1] / sides[:, 0])
    is_tall = len(listed.classes) > _FEW_CLASSES
    for name, svg in (
        ("objects a class", class_figure(listed.classes, numbers)),
        ("sizes of objects", size_figure(scaled, anchors, size.name)),
        ("objects an image", crowding_figure(of_images)),
        ("aspect ratios", ratio_figure(scaled, ratios)),
    ):
        tall = ' class="tall"' if is_tall and name == "objects a class" else ""
        yield f"<figure{tall}>{_image(svg.encode(), 'svg+xml', name)}</figure>"


def _steps(values: npt.NDArray[np.float64]) -> list[float]:
    """Different values, to a quarter of an octave: anchors' corners are whole pixels."""
    return list(2 ** (np.unique(np.round(4 * np.log2(values))) / 4))


def _sample(sample: Sample) -> str:
    file = BytesIO()
    sample.picture.save(file, "JPEG", quality=85)
    picture = _image(file.getvalue(), "jpeg", sample.name)
    caption = f"{sample.name}: {sample.reason}, {sample.num_objects:,} objects"
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _image(data: bytes, kind: str, description: str) -> str:
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{escape(description)}">'
