"""What trackers hold of a run, also of one that was killed, and of a tracker that went away."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb as wandb_package
from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import ROOT, command
from tests.training.tracker_contents import (
    Contents,
    of_csv,
    of_mlflow,
    of_tensorboard,
    of_wandb,
)

Run = Callable[..., tuple[int, str]]
TRACKERS = ["logger=[tensorboard,wandb,mlflow]", "logger.wandb.offline=true"]
SHOWN = ["val/picture_01", "val/box_pr", "val/mask_pr", "val/confusion", "val/ap_per_class"]
FAILED = "has failed and is left alone"


def drawn(overrides: list[str]) -> list[str]:
    """With the curves and the matrix that most tests leave out."""
    return [each for each in overrides if not each.startswith("++")]


def assert_same(ours: Contents, theirs: Contents) -> None:
    """Each value of csv is there once; TensorBoard and csv keep float32."""
    assert ours.keys() <= theirs.keys(), sorted(ours.keys() - theirs.keys())
    for key, (value,) in ours.items():
        assert theirs[key] == [pytest.approx(value, rel=1e-6, abs=1e-9)], key


def test_all_trackers_hold_the_same(
    tiny: Callable[..., list[str]], run_main: Run, tmp_path: Path
) -> None:
    run, store = tmp_path / "run", tmp_path / "mlflow"
    overrides = tiny(
        *TRACKERS,
        f"logger.mlflow.folder={store}",
        "callbacks.pictures.num_images=2",
        "trainer.max_epochs=2",
        "trainer.check_val_every_n_epoch=2",
        "trainer.log_every_n_steps=2",
        f"hydra.run.dir={run}",
    )
    status, output = run_main(*drawn(overrides))
    assert status == 0 and FAILED not in output, output
    record = json.loads((run / "run.json").read_text())
    expected = of_csv(run)
    names = {name for name, _ in expected}
    assert {"train/loss_mask", "val/mask_ap", "val/loss", "val/mask_ap/disc"} <= names
    assert {"train/grad_norm", "train/peak_memory_host", "train/images_per_second"} <= names
    assert all(0 <= value < 1 for (name, _), (value,) in expected.items() if "data_wait" in name)
    board, board_shown = of_tensorboard(run / "tensorboard")
    wandb, wandb_shown, ids, config = of_wandb(run)
    uri = f"sqlite:///{store}/mlflow.db"
    mlflow, mlflow_shown = of_mlflow(uri, record["trackers"]["mlflow"]["id"])
    for contents in (board, wandb, mlflow):
        assert_same(expected, contents)
    evaluated = sorted({step for name, step in expected if name == "val/ap"})
    assert evaluated == [11] and ids == {record["trackers"]["wandb"]["id"]}
    for name in SHOWN:
        assert {step for key, step in board_shown if key == name} == set(evaluated)
        assert {step for key, step in mlflow_shown if key == name} == set(evaluated)
        assert {step for key, step in wandb_shown if key.startswith(f"{name}/")} == set(evaluated)

    environment = record["environment"]
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["data"]["val"]["classes"] == ["disc", "box", "triangle"]
    assert environment["git"] is None or len(environment["git"]["commit"]) == 40
    assert config["environment"] == environment and config["backbone"]["width"] == 8
    assert b'"width": 8' in board_shown["config/backbone", 0][0]
    assert_mlflow_has_the_configuration(uri, record["trackers"]["mlflow"]["id"])
    assert_pictures(run, expected, last=evaluated[-1])
    assert "COCO AP after 12 steps" in output
    assert not OmegaConf.missing_keys(OmegaConf.load(run / "config.yaml"))
    spec = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["mrcnn_lightning"]
    assert spec["class_names"] == ["disc", "box", "triangle"] and spec["category_ids"] == [3, 7, 12]


def assert_mlflow_has_the_configuration(uri: str, run_id: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["backbone.width"] == "8"
    config: Any = OmegaConf.load(client.download_artifacts(run_id, "config.yaml"))
    assert config.backbone.width == 8 and config.environment.versions.torch == torch.__version__


def assert_pictures(run: Path, metrics: Contents, *, last: int) -> None:
    """They can be looked at, and their numbers are those of the metrics."""
    pictures = sorted((run / "pictures").glob("val_picture_*.png"))
    assert len(pictures) == 2 and Image.open(pictures[0]).size == (512 + 4 + 512, 512)
    for kind in ("box", "mask"):
        curves = json.loads((run / "pictures" / f"val_{kind}_pr.json").read_text())
        (ap50,) = metrics[f"val/{kind}_ap50", last]
        assert np.mean(curves["0.50"]["mean"]) == pytest.approx(ap50, abs=1e-4)
        assert curves["0.50"]["classes"].keys() == {"disc", "box", "triangle"}
    table = json.loads((run / "pictures" / "val_confusion.json").read_text())
    objects = json.loads((run / "run.json").read_text())["environment"]["data"]["val"]["objects"]
    assert np.sum(table["true_by_found"][:3]) == objects
    assert table["names"] == ["disc", "box", "triangle", "background"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """MLflow's own server: its address, and its process."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    arguments += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *arguments],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    uri, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.2)
    yield uri, process.pid
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.servers
def test_a_run_that_is_killed_goes_on_in_all_trackers(
    tiny: Callable[..., list[str]], run_main: Run, tmp_path: Path, server: tuple[str, int]
) -> None:
    """Once before there is a checkpoint, once in the second epoch; the end is in a new folder."""
    uri, _ = server
    wandb_package.teardown()  # processes that are forked would share its service
    first, second = tmp_path / "first", tmp_path / "second"

    def start(run: Path, kill_after: int, *more: str) -> int | None:
        overrides = tiny(
            *TRACKERS,
            f"logger.mlflow.tracking_uri={uri}",
            "trainer.max_epochs=3",
            "trainer.check_val_every_n_epoch=1",
            "trainer.log_every_n_steps=1",
            "data.num_workers=0",
            "callbacks.pictures.num_images=1",
            "callbacks.last.every_n_epochs=100",
            "callbacks.last_within_epoch.every_n_train_steps=6",
            "+callbacks.recorder._target_=tests.training.recorder.Recorder",
            f"+callbacks.recorder.file={run}.images",
            f"+callbacks.recorder.kill_after={kill_after}",
            f"run_dir={run}",
            *more,
        )
        process = multiprocessing.get_context("fork").Process(
            target=lambda: sys.exit(run_main(*overrides)[0])  # torch takes seconds to import
        )
        process.start()
        process.join()
        assert FAILED not in (run / "train.log").read_text()
        return process.exitcode

    assert start(first, 4, "resume=auto") == -signal.SIGKILL
    assert start(first, 10, "resume=auto") == -signal.SIGKILL
    # The checkpoint was written before the evaluation that followed it.
    last = first / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 6
    assert start(second, 0, f"ckpt_path={last}") == 0
    records = [json.loads((run / "run.json").read_text()) for run in (first, second)]
    assert records[0]["trackers"] == records[1]["trackers"]
    wandb, wandb_shown, ids, _ = of_wandb(first)
    assert ids == {records[0]["trackers"]["wandb"]["id"]} and not (second / "wandb").exists()
    board, board_shown = of_tensorboard(first / "tensorboard")
    mlflow, mlflow_shown = of_mlflow(uri, records[0]["trackers"]["mlflow"]["id"])
    expected = {key: values for key, values in of_csv(second).items() if key[1] >= 6}
    before = {key: values for key, values in of_csv(first).items() if key[1] < 6}
    for contents in (board, wandb, mlflow):
        timeless = {
            key: values
            for key, values in (before | expected).items()
            if key[0] not in ("train/data_wait", "train/images_per_second")
            and "peak_memory" not in key[0]
        }
        assert_same(timeless, contents)
        assert all(len(values) == 1 for values in contents.values())
        steps = {step for name, step in contents if name == "train/images_per_second"}
        assert steps == set(range(18))
    for shown in (board_shown, wandb_shown, mlflow_shown):
        assert all(len(values) == 1 for values in shown.values())
        steps = {step for name, step in shown if name.startswith("val/ap_per_class")}
        assert steps == {5, 11, 17}


@pytest.mark.servers
def test_disks_that_are_full(tiny: Callable[..., list[str]], tmp_path: Path) -> None:
    """Each tracker's folder on a disk of its own, which is too small."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    run = tmp_path / "run"
    mounts = []
    for folder in ("tensorboard", "wandb", "mlflow"):
        (run / folder).mkdir(parents=True)
        mounts.append(f"mount -t tmpfs -o size=300k none {run / folder}")
    overrides = tiny(
        *TRACKERS,
        f"logger.mlflow.folder={run}/mlflow",
        "trainer.max_epochs=2",
        "trainer.check_val_every_n_epoch=1",
        "trainer.log_every_n_steps=1",
        f"run_dir={run}",
    )
    process = command(
        *drawn(overrides),
        cwd=tmp_path,
        wait=False,
        program=[
            *("unshare", "-rm", "sh", "-c", f'{" && ".join(mounts)} && exec "$@"', "sh"),
            *(sys.executable, str(ROOT / "train.py")),
        ],
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    for tracker in ("tensorboard", "mlflow", "wandb"):
        assert output.count(f"logger.{tracker} {FAILED}") <= 1, output
    for tracker in ("tensorboard", "mlflow"):
        assert output.count(f"logger.{tracker} {FAILED}") == 1, output
    assert {step for name, step in of_csv(run) if name == "train/loss"} == set(range(12))


@pytest.mark.servers
def test_a_server_that_goes_away(
    tiny: Callable[..., list[str]], run_main: Run, tmp_path: Path, server: tuple[str, int]
) -> None:
    """Training ends well, soon, with one warning."""
    uri, pid = server
    start = time.monotonic()
    status, output = run_main(
        *tiny(
            "logger=mlflow",
            f"logger.mlflow.tracking_uri={uri}",
            "trainer.max_epochs=2",
            "trainer.check_val_every_n_epoch=1",
            "trainer.log_every_n_steps=1",
            "+callbacks.ends._target_=tests.training.recorder.EndsProcess",
            f"+callbacks.ends.pid={pid}",
            "+callbacks.ends.step=4",
            f"hydra.run.dir={tmp_path}/run",
        )
    )
    assert status == 0 and output.count("WARNING") == output.count(FAILED) == 1, output
    assert "logger.mlflow" in output and time.monotonic() - start < 60
    with (tmp_path / "run" / "csv" / "metrics.csv").open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert {int(row["step"]) for row in rows if row["train/loss"]} == set(range(12))
