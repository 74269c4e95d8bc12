"""Two nodes on loopback, each started by torchrun: one folder, one result, that of one process."""

import csv
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, command


def test_two_nodes_are_one_run(
    tiny: Callable[..., list[str]], tmp_path: Path, run_main: Callable[..., tuple[int, str]]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = tiny(
        "backbone.norm=bn",
        "trainer.accelerator=cpu",
        "trainer.max_steps=10",  # the evaluation comes after the fit
        "trainer.check_val_every_n_epoch=9",
        "data.num_workers=0",
        "callbacks.pictures=null",
    )
    nodes = []
    for node in (1, 0):  # each composes its folder's name by its own clock
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
        torchrun += [f"--node-rank={node}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        program = [*torchrun, f"--master-port={port}", str(ROOT / "train.py")]
        run = [
            *common,
            "trainer.num_nodes=2",
            "hydra.run.dir='runs/${now:%H-%M-%S-%f}'",
            "+callbacks.weights._target_=tests.training.recorder.WeightsOfEachRank",
            f"+callbacks.weights.file={tmp_path}/weights",
        ]
        nodes.append(command(*run, cwd=tmp_path, wait=False, program=program))
    try:
        outputs = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    first, second = (torch.load(tmp_path / f"weights{rank}", weights_only=True) for rank in (0, 1))
    for key, value in first.items():
        if "running" not in key and "num_batches" not in key:  # each rank's own statistics
            assert torch.equal(value, second[key]), key

    # What it was evaluated to is what its checkpoint is on one process.
    test = ["stage=test", f"ckpt_path={folder}/checkpoints/last.ckpt"]
    assert run_main(*common, *test, f"run_dir={tmp_path}/one")[0] == 0
    trained, tested = rows(folder)[-1], rows(tmp_path / "one")[-1]
    assert float(trained["val/box_ar100"]) > 0
    for name in ("box_ap", "mask_ap50", "box_ar100", "mask_ar100"):
        assert trained[f"val/{name}"] == tested[f"test/{name}"], name
    assert float(trained["val/loss"]) == pytest.approx(float(tested["test/loss"]), rel=1e-4)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "csv" / "metrics.csv").open() as table:
        return list(csv.DictReader(table))
