"""The benchmarks' own parts, on little work: contenders agree, and reports say what they should."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_last_line_is_json(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    turns = benchmark("turns")
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in ("ours", "theirs")}
    seconds = turns.in_turns(works, rounds=2, warmup=1)
    assert order == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]
    seconds = {"ours": [0.5, 0.4, 0.7], "theirs": [1.0, 2.0, 0.1]}
    turns.report("title", seconds, peer="theirs", work=4, unit="images", extra=3)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["ratio"] == 2.0 and last["extra"] == 3 and last["results"]["theirs"]["ratio"] == 1.0
    assert last["results"]["ours"]["images_per_s"] == 8.0
    assert {"device", "versions", "commit", "peer"} <= set(last)


def test_a_step_and_where_its_time_goes(benchmark: Any) -> None:
    steps, breakdown = benchmark("training_step"), benchmark("breakdown")
    for name in ("ours", "torchvision"):
        step = steps.step_of(name, (64, 96), [3, 1])
        before = [parameter.detach().clone() for parameter in step.model.parameters()]
        shares, launches = breakdown.shares(step, step.model)
        assert sum(shares.values()) == pytest.approx(1)
        assert min(shares.values()) >= 0 and (launches > 0) == torch.cuda.is_available()
        parts = {"RoIAlign", "NMS", "target assignment", "losses", "optimizer"}
        assert parts <= set(shares) and shares[breakdown.CONVOLUTIONS] > 0.2
        after = list(step.model.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
        step()  # the labels are gone


def test_evaluations_agree(benchmark: Any, tmp_path: Path) -> None:
    evaluation = benchmark("evaluation")
    ours, plain, other = (
        evaluation.contender(name, str(tmp_path), 3)() for name in evaluation.CONTENDERS
    )
    assert set(ours) == set(plain) and 0.05 < plain["mask_ap"] < 0.95
    assert max(abs(ours[name] - plain[name]) for name in plain) < 1e-9
    assert max(abs(ours[name] - other[name]) for name in other) < 1e-2


def test_data_sets_hold_the_same_objects(benchmark: Any, tmp_path: Path) -> None:
    loading = benchmark("data_loading")
    loading.synthetic_set(tmp_path, 40)
    images, file = tmp_path / "images", tmp_path / "annotations.json"
    ours = loading.our_dataset(images, file, str(tmp_path))
    theirs = loading.Reference(images, file)
    assert len(ours) == len(theirs) == 4
    for index in range(4):
        sample, (image, target) = ours[0, index], theirs[index]
        assert sample.image.shape == (3, 800, 1066) and image.shape == (3, 48, 64)
        sides = sample.targets.boxes[:, 2:] - sample.targets.boxes[:, :2]
        scale = torch.tensor([1066 / 64, 800 / 48])
        others = (target["boxes"][:, 2:] - target["boxes"][:, :2]) * scale
        assert (sides - others).abs().max() < 1e-3
        covered = sample.targets.masks.float().mean((1, 2)) * sides.prod(1)
        pixels = target["masks"].sum((1, 2)) * scale.prod()
        assert (covered / pixels - 1).abs().max() < 0.2


def test_predictions_are_compared(benchmark: Any) -> None:
    inference = benchmark("inference")
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[:, :2] = True
    boxes = torch.tensor([[0.0, 0, 4, 2], [1, 1, 3, 3]])
    found = [(boxes, torch.tensor([0.9, 0.5]), torch.tensor([1, 2]), masks)]
    same = inference.compare(found, found)
    assert same["detections"] == 2 and same["unmatched"] == 0
    other = masks.clone()
    other[0, 0, 0] = False
    moved = [(boxes + torch.tensor([[0.25], [9]]), found[0][1] - 0.125, found[0][2], other)]
    differences = inference.compare(moved, found)
    assert differences["unmatched"] == 1 and differences["largest_box_distance_px"] == 0.25
    assert differences["largest_score_distance"] == 0.125
    assert differences["mask_pixels_differing"] == pytest.approx(1 / 7)
