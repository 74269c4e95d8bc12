"""Scores of generated sets against pycocotools and LVIS's package, whole arrays, bit for bit."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_lightning.evaluation import scoring
from tests.evaluation.found import found
from tests.evaluation.generated import federated, generated

QUICK, MANY = range(120), range(10_000)


def by_pycocotools(
    truth: dict[str, Any], results: list[dict[str, Any]], iou_type: str, counts: list[int]
) -> COCOeval:
    # It adds to the entries.
    truth, results = copy.deepcopy(truth), copy.deepcopy(results)
    with contextlib.redirect_stdout(io.StringIO()):
        true, detected = COCO(), COCO()
        true.dataset, detected.dataset = truth, truth | {"annotations": []}
        true.createIndex()
        detected.createIndex()
        if results:
            detected = true.loadRes(results)
        peer = COCOeval(true, detected, iou_type)
        peer.params.maxDets = counts
        peer.evaluate()
        peer.accumulate()
    return peer


def compare_with_pycocotools(seeds: range, monkeypatch: pytest.MonkeyPatch) -> None:
    are_between = 0
    for seed in seeds:
        truth, results, iou_type, most = generated(seed)
        counts = sorted({1, 10, 100, max(most, 100)})
        peer = by_pycocotools(truth, results, iou_type, counts).eval
        monkeypatch.setattr(scoring, "_MOST_PAIRS", 2**25 if seed % 3 else 20)
        curves = scoring._curves(truth, found(results), iou_type, counts, is_lvis=False)
        for name, ours in zip(("precision", "recall"), curves, strict=True):
            assert np.array_equal(ours, peer[name]), (seed, name)
        are_between += bool(((peer["precision"] > 0) & (peer["precision"] < 1)).any())
    assert are_between > 0.5 * len(seeds)


def test_curves_are_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    compare_with_pycocotools(QUICK, monkeypatch)


@pytest.mark.slow
def test_curves_are_pycocotools_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    compare_with_pycocotools(MANY, monkeypatch)


@pytest.mark.filterwarnings("ignore:The 'warn' method:DeprecationWarning")
def test_curves_are_those_of_lvis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lvis = pytest.importorskip("lvis", reason="pip install lvis, which this is compared with")
    monkeypatch.setattr(np, "float", float, raising=False)  # gone from NumPy since 1.24
    for seed in range(60):
        truth, results, iou_type, _ = generated(seed)
        truth = federated(truth, seed)
        if not results:  # it cannot say that nothing was found
            continue
        if seed % 4 == 0:  # more than count
            results = results * 5
        file = tmp_path / "lvis.json"
        file.write_text(json.dumps(truth))
        of_file = lvis.LVIS(str(file))
        for entry in of_file.dataset["annotations"]:
            entry.setdefault("segmentation", [])
        peer = lvis.LVISEval(of_file, copy.deepcopy(results), iou_type)
        peer.run()
        ours = scoring._curves(truth, found(results), iou_type, [300], is_lvis=True)
        for name, curves in zip(("precision", "recall"), ours, strict=True):
            assert np.array_equal(curves[..., 0], peer.eval[name]), (seed, name)
