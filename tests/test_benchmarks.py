"""The benchmarks' own parts, on little work: contenders agree, and reports say what they should."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, SHARED


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
    setting = steps.Setting([3, 1], (64, 96), "float32")
    for name in ("plain", "torchvision"):
        step = steps.step_of(name, setting)
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


def gpu_script(*arguments: str, out: Path) -> "subprocess.CompletedProcess[str]":
    """`bash benchmarks/gpu.sh ...` of this Python, on the CPU."""
    own = {"OUT": str(out), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments],
        env=os.environ | own | {"OMP_NUM_THREADS": "1", "MRCNN_SHARED": str(SHARED)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["8"], "8 is no part: see the head of benchmarks/gpu.sh\n"),
        ([], "say which parts: see the head of benchmarks/gpu.sh\n"),
        (["5"], "no GPU here: bash benchmarks/gpu.sh --dry-run goes without\n"),
    ],
)
def test_what_the_gpu_script_refuses(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    done = gpu_script(*arguments, out=tmp_path / "out")
    assert (done.returncode, done.stderr) == (2, sentence)
    assert not (tmp_path / "out").exists()


def test_parts_make_one_table(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns, table = benchmark("turns"), benchmark("gpu_table")
    seconds = {"step": [0.1], "parts": [0.2], "torchvision": [0.3]}
    turns.report(
        "training step, batch 16, 800x1344, bf16",
        seconds,
        peer="torchvision",
        work=16,
        unit="images",
        of_each={"step": {"host_syncs": 1}, "torchvision": {"host_syncs": 0}},
        out=tmp_path / "part_2.jsonl",
    )
    with turns.kept_going("a measurement", tmp_path / "part_3.jsonl"):
        raise ValueError("out of | memory")
    with (tmp_path / "part_3.jsonl").open("a") as file:
        file.write('{"benchmark": "cut sh')  # as a process leaves that was killed
    capsys.readouterr()
    table.main([tmp_path])
    printed = capsys.readouterr().out
    assert "part_3.jsonl: a line was cut short" in printed
    for line in (
        "| training step, batch 16, 800x1344, bf16 | step | 100.00 ms | 160.0 images | 3.0 |  | "
        "host_syncs 1 |",
        "| a measurement | failed |  |  |  |  | ValueError: out of / memory |",
        "- reached: training step, batch 16, 800x1344, bf16: ratio at least 2.5; step has 3.0",
        "- missed: training step, batch 16, 800x1344, bf16: images_per_s at least 180; "
        "step has 160.0",
        "- reached: training step, batch 16, 800x1344, bf16: host_syncs at most 2; step has 1",
        "- not measured: prediction, batch 8, 640x480 at 800/1333: ratio at least 2",
    ):
        assert line in printed.splitlines()
    assert (tmp_path / "gpu.md").read_text() in printed
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert len(content["places"]) == 1 and {"device", "versions", "commit"} == set(
        content["places"][0]
    )
    assert [line["part"] for line in content["measured"]] == ["2", "3"]


@pytest.mark.slow
def test_every_part_of_the_gpu_script_on_a_cpu(tmp_path: Path) -> None:
    done = gpu_script("--dry-run", out=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    measured = json.loads((tmp_path / "gpu.json").read_text())["measured"]
    assert {line["part"] for line in measured} == set("123456")
    needs_data = set() if (SHARED / "data").is_dir() else {"4", "6"}
    failed = [line for line in measured if "error" in line and line["part"] not in needs_data]
    assert failed == []


def test_ways_and_precisions_that_are_not_known(benchmark: Any) -> None:
    steps = benchmark("training_step")
    with pytest.raises(Exception, match="--way compiled is not one of plain, parts, step"):
        steps.main(way=["compiled"])
    with pytest.raises(Exception, match="--precision bf32 is not one of float32, bf16, fp16"):
        steps.main(precision=["bf32"])


def test_nothing_waits_in_an_ordinary_step(
    benchmark: Any, tiny: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = benchmark("operators").steps_of_fit(
        *tiny("trainer.max_epochs=1", "trainer.log_every_n_steps=3", f"run_dir={tmp_path}/run")
    )
    assert [step.is_logged for step in steps] == [False, True, False, False, True]
    positives = "nonzero mrcnn_lightning/models/heads/mask_head.py"
    for step in steps:
        waits = [wait.partition(":")[0] for wait in step.waits]
        # Lightning's monitor copies learning rates before a step that is logged begins.
        waits = [wait for wait in waits if not wait.endswith("lr_monitor.py")]
        if step.is_logged:
            assert sorted(waits) == [
                "_local_scalar_dense lightning/fabric/utilities/apply_func.py",  # the norm
                "cpu mrcnn_lightning/training/step_scalars.py",
                positives,
                "tolist mrcnn_lightning/training/divergence.py",
            ]
        else:
            assert waits == [positives]
