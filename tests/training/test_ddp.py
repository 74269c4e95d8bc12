"""Two processes on one CPU."""

import csv
import json
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from mrcnn_lightning.data.dataset import collate
from mrcnn_lightning.data.samplers import TrainBatchSampler
from tests.conftest import build_model, command, make_batch
from tests.training.test_task import build

TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]


def test_a_run_on_two_processes(
    tiny: Callable[..., list[str]], tmp_path: Path, run_main: Callable[..., tuple[int, str]]
) -> None:
    others = tmp_path / "runs" / f"{datetime.now():%Y}"  # as if it began in the same second
    others.mkdir(parents=True)
    # Lightning starts the second process itself, from the command line of `mrcnn train`.
    process = command(
        *tiny(
            *TWO,
            "hydra.run.dir='runs/${now:%Y}'",
            "trainer.max_epochs=2",
            "trainer.check_val_every_n_epoch=2",
            "+callbacks.weights._target_=tests.training.recorder.WeightsOfEachRank",
            f"+callbacks.weights.file={tmp_path}/weights",
        ),
        cwd=tmp_path,
        program=[str(Path(sys.executable).parent / "mrcnn"), "train"],
    )
    assert process.returncode == 0
    run = others.with_name(f"{others.name}_2")
    assert not list(others.iterdir()) and set((tmp_path / "runs").iterdir()) == {others, run}
    assert "Grad strides do not match" not in (run / "train.log").read_text()
    assert {"config.yaml", "checkpoints", "pictures", "csv"} <= {p.name for p in run.iterdir()}
    first, second = (torch.load(tmp_path / f"weights{rank}", weights_only=True) for rank in (0, 1))
    assert len(first) > 50
    for key, value in first.items():
        if "running" not in key and "num_batches" not in key:  # each rank's own statistics
            assert torch.equal(value, second[key]), key

    # Batches of 3 of the 10 images: the ranks get uneven shares.
    test = ["stage=test", f"ckpt_path={run}/checkpoints/last.ckpt", "data.eval_batch_size=3"]
    command(*tiny(*test, *TWO, f"run_dir={tmp_path}/two"), cwd=tmp_path)
    assert run_main(*tiny(*test, f"run_dir={tmp_path}/one"))[0] == 0
    one, two = (metrics(tmp_path / name / "csv" / "metrics.csv") for name in ("one", "two"))
    assert one.keys() == two.keys() and float(one["test/mask_ap"]) >= 0
    for key, value in one.items():
        if "/box_" in key or "/mask_" in key:
            assert value == two[key], key
        else:
            assert float(value) == pytest.approx(float(two[key]), rel=1e-4), key
    found = [
        json.loads((tmp_path / name / "predictions.json").read_text()) for name in ("one", "two")
    ]
    assert len(found[0]) == len(found[1]) > 0


def test_processes_started_one_by_one_of_which_one_fails(
    tiny: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun or SLURM start them: one folder, and the first failure ends all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    names = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2"}
    for name, value in (names | {"LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    processes = []
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        overrides = tiny(
            *TWO,
            "hydra.run.dir='runs/${now:%H-%M-%S-%f}'",
            "+callbacks.fails._target_=tests.training.recorder.FailsAlone",
            "+callbacks.fails.rank=1",
            "callbacks.pictures=null",
            "trainer.num_sanity_val_steps=0",
        )
        processes.append(command(*overrides, cwd=tmp_path, wait=False))
        time.sleep(0.5)
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    (run,) = (tmp_path / "runs").iterdir()
    assert outputs[1].strip().splitlines()[-2:] == [
        "error: one rank has had enough (rank 1)",
        f"(details: {run}/error.txt)",
    ]
    assert "Traceback" in (run / "error.txt").read_text()
    assert "has had enough" in (run / "train_rank_1.log").read_text()
    assert not any("Traceback" in output for output in outputs)


def metrics(file: Path) -> dict[str, str]:
    """The last row of a table of metrics."""
    with file.open() as rows:
        return list(csv.DictReader(rows))[-1]


def test_gradients_have_the_strides_of_their_weights(tiny: Callable[..., list[str]]) -> None:
    """DDP's buckets have the weights' strides; another gradient would be copied at every step."""
    detector = build_model(*tiny("backbone.norm=bn"))
    batch = make_batch([(64, 64)], [[[4, 4, 40, 40], [20, 20, 60, 50]]], [[1, 2]])
    torch.stack(list(detector.loss(batch).values())).sum().backward()
    for name, weight in detector.named_parameters():
        assert weight.grad is None or weight.grad.stride() == weight.stride(), name


ONE_GRAPH = [
    "task.compiled=step",
    "trainer.limit_val_batches=0",
    "+callbacks.quickly._target_=tests.training.recorder.CompilesQuickly",
]


@pytest.mark.parametrize("graph", [[], pytest.param(ONE_GRAPH, marks=pytest.mark.slow)])
def test_gradients_are_the_mean_of_the_halves(
    tiny: Callable[..., list[str]], tmp_path: Path, graph: list[str]
) -> None:
    overrides = tiny("trainer.max_steps=1", "optimizer=sgd", "backbone.norm=frozen_bn")
    command(
        *overrides,
        *TWO,
        *graph,
        "+callbacks.gradients._target_=tests.training.recorder.GradientsOfEachRank",
        f"+callbacks.gradients.file={tmp_path}/gradients",
        cwd=tmp_path,
    )
    ranks = [torch.load(tmp_path / f"gradients{rank}", weights_only=True) for rank in (0, 1)]

    torch.manual_seed(0)
    task, data, _ = build(overrides)
    task.model.load_state_dict(ranks[0]["weights"])
    halves = []
    for rank in (0, 1):
        sampler = TrainBatchSampler(
            data.annotations["train"].image_sizes,
            factors=torch.ones(len(data.annotations["train"]), dtype=torch.float64),
            batch_size=4,
            rank=rank,
            world_size=2,
            accumulate=1,
            seed=data.seed,
            images_seen=lambda: 0,
        )
        dataset = data.train_dataloader().dataset
        batch = collate([dataset[key] for key in next(iter(sampler))], canvas=data.canvas)
        assert batch.image_ids.tolist() == ranks[rank]["image_ids"].tolist()
        task.model.zero_grad()
        torch.stack(list(task.model.loss(batch).values())).sum().backward()
        halves.append({name: p.grad.clone() for name, p in task.model.named_parameters()})
    for name, first in halves[0].items():
        mean = (first + halves[1][name]) / 2
        for rank in (0, 1):
            difference = (ranks[rank]["gradients"][name] - mean).abs().max()
            assert difference <= 1e-5 * max(mean.abs().max().item(), 1e-3), name


def test_layers_unfrozen_in_a_later_phase_are_reduced(
    tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    command(
        *tiny(
            *TWO,
            "phases=[{backbone.trainable_stages:0},{backbone.trainable_stages:5}]",
            "trainer.max_steps=1",
            "optimizer=sgd",
            "backbone.norm=frozen_bn",
            "trainer.limit_val_batches=0",
            "callbacks.last=null",  # the weights are handed on all the same
            f"run_dir={tmp_path}/run",
            "+callbacks.gradients._target_=tests.training.recorder.GradientsOfEachRank",
            "+callbacks.gradients.file=${run_dir}/gradients",
            "+callbacks.weights._target_=tests.training.recorder.WeightsOfEachRank",
            "+callbacks.weights.file=${run_dir}/weights",
        ),
        cwd=tmp_path,
    )

    def load(name: str) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(tmp_path / "run" / name, weights_only=True)
        return content

    before = [load(f"phase_1/gradients{rank}")["gradients"] for rank in (0, 1)]
    after = [load(f"phase_2/gradients{rank}")["gradients"] for rank in (0, 1)]
    seen = [load(f"phase_2/gradients{rank}")["image_ids"].tolist() for rank in (0, 1)]
    assert not set(seen[0]) & set(seen[1])
    num_unfrozen = 0
    for name, gradient in after[0].items():
        assert gradient.any() and torch.equal(gradient, after[1][name]), name
        is_new = before[0][name] is None
        assert is_new == (before[1][name] is None) == name.startswith("backbone."), name
        num_unfrozen += is_new
    assert num_unfrozen >= 20
    last = load("phase_1/checkpoints/last.ckpt")["state_dict"]
    end = load("phase_2/checkpoints/last.ckpt")["state_dict"]
    for rank in (0, 1):
        start, own_end = load(f"phase_2/weights{rank}_at_start"), load(f"phase_2/weights{rank}")
        assert all(torch.equal(value, start[key]) for key, value in last.items())
        assert all(torch.equal(value, own_end[key]) for key, value in end.items())
