import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou
from typer.testing import CliRunner

from mrcnn_lightning.app.cli import app
from mrcnn_lightning.data.anchor_fit import fit_anchors, with_cells
from mrcnn_lightning.data.checking.boxes import AnchorLevel, best_anchor_iou
from mrcnn_lightning.ops.anchors import anchor_grid

LEVELS = [AnchorLevel(np.zeros((0, 4)), (stride, stride), 0.0) for stride in (4, 8, 16, 32, 64)]


def boxes_of(ratios: list[float], sides: tuple[float, float]) -> np.ndarray:
    rng = np.random.default_rng(0)
    side = rng.uniform(*sides, 400)
    ratio = rng.choice(ratios, 400)
    extent = np.stack([side / np.sqrt(ratio), side * np.sqrt(ratio)], axis=1)
    origins = rng.uniform(40, 400, (400, 2))
    return np.concatenate([origins, origins + extent], axis=1)


def test_fitted_anchors_reach_what_the_defaults_do_not() -> None:
    boxes = boxes_of([0.2, 1.0, 4.0], (9, 20))
    default = with_cells(LEVELS, [32, 64, 128, 256, 512], [0.5, 1.0, 2.0])
    sizes, ratios = fit_anchors(boxes, LEVELS)
    assert ratios == pytest.approx([0.2, 1.0, 4.0], abs=0.01)
    assert sizes == [sizes[0] * 2**level for level in range(5)] and 8 <= sizes[0] <= 20
    fitted = best_anchor_iou(boxes, with_cells(LEVELS, sizes, ratios))
    assert (best_anchor_iou(boxes, default) >= 0.5).mean() < 0.05
    assert (fitted >= 0.5).mean() > 0.7
    # torchvision's IoU with the whole grid says the same.
    cells = [torch.from_numpy(level.cells) for level in with_cells(LEVELS, sizes, ratios)]
    grid = anchor_grid(
        cells,
        [(640 // level.strides[0],) * 2 for level in LEVELS],
        [level.strides for level in LEVELS],
        offset=0.0,
    )
    peer = box_iou(torch.from_numpy(boxes), grid).amax(1).numpy()
    assert np.abs(peer - fitted).max() < 1e-9


def test_ratios_that_are_one_are_not_repeated() -> None:
    assert fit_anchors(boxes_of([1.0], (30, 40)), LEVELS)[1] == [1.0]


def test_the_command_prints_overrides(shapes_root: Path, tmp_path: Path) -> None:
    file = shapes_root / "annotations" / "instances_train.json"
    cache = ["--cache-dir", str(tmp_path)]
    done = CliRunner().invoke(app, ["data", "anchors", str(file), "experiment=shapes", *cache])
    assert done.exit_code == 0, done.output
    overrides = done.output.splitlines()[-1].replace("'", "").split()
    sizes, ratios = (json.loads(each.split("=")[1]) for each in overrides)
    assert len(sizes) == 5 and 1 <= len(ratios) <= 3 and "proposed" in done.output


@pytest.mark.parametrize(
    ("words", "reason"), [(["no.json"], "no.json is no file"), ([], "no objects")]
)
def test_what_cannot_be_fitted_is_said(words: list[str], reason: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 9}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [],
    }
    empty.write_text(json.dumps(content))
    done = CliRunner().invoke(
        app, ["data", "anchors", *(words or [str(empty)]), "--cache-dir", str(tmp_path)]
    )
    assert done.exit_code == 1 and reason in done.output and "Traceback" not in done.output
