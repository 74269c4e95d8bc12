"""Each run has a folder of its own, and keeps others out of it while it lives."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from mrcnn_lightning.app.run import CONF
from mrcnn_lightning.app.run_folder import RunFolder, release

Run = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    release()


def compose_run(folder: str, *more: str) -> DictConfig:
    """A run's configuration, Hydra's own included."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(
            "train", [f"hydra.run.dir='{folder}'", *more], return_hydra_config=True
        )


def test_runs_that_start_at_the_same_time_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = []
    for _ in range(3):
        cfg = compose_run(f"{tmp_path}/${{now:%Y}}")  # the same for a year
        RunFolder().on_run_start(cfg)
        folders.append(cfg.hydra.run.dir)
    first = f"{tmp_path}/{datetime.now():%Y}"
    assert folders == [first, f"{first}_2", f"{first}_3"]


def test_a_sweep_has_a_folder_of_its_own(run_main: Run, tmp_path: Path) -> None:
    other = tmp_path / "sweeps" / f"{datetime.now():%Y}"
    other.mkdir(parents=True)
    in_process = "hydra/launcher=basic"
    status, _ = run_main("-m", in_process, "stage=fitt,fitx", "hydra.sweep.dir='sweeps/${now:%Y}'")
    assert status == 1 and not list(other.iterdir())
    assert (other.with_name(f"{other.name}_2") / "1" / "error.txt").is_file()


def test_a_named_folder_is_kept_until_its_run_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = compose_run(f"{tmp_path}/run")
    other = os.fork()
    if other == 0:
        RunFolder().on_run_start(cfg)
        (tmp_path / "started").touch()
        time.sleep(60)
        os._exit(0)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    (tmp_path / "run" / "error.txt").write_text("of that run")
    with pytest.raises(SystemExit):
        RunFolder().on_run_start(cfg)
    assert (
        f"error: run_dir={tmp_path}/run is in use by another run (process {other} on "
        in capsys.readouterr().err
    )
    assert (tmp_path / "run" / "error.txt").is_file()
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    RunFolder().on_run_start(cfg)
    assert not (tmp_path / "run" / "error.txt").exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/run", "file/${now:%Y}"):
        with pytest.raises(SystemExit):
            RunFolder().on_run_start(compose_run(f"{tmp_path}/{folder}"))
        text = capsys.readouterr().err
        assert text.startswith("error: the run's folder cannot be made: ")
        assert text.endswith("say another with run_dir=DIR\n")


def test_a_run_that_goes_on_by_itself_needs_a_folder_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    by_time = f"{tmp_path}/${{now:%f}}"
    with pytest.raises(SystemExit):
        RunFolder().on_run_start(compose_run(by_time, "resume=auto"))
    assert "error: resume=auto goes on in the same folder" in capsys.readouterr().err
    cfg = compose_run(by_time, "resume=auto", f"run_dir={tmp_path}/mine")
    RunFolder().on_run_start(cfg)
    assert cfg.hydra.run.dir == f"{tmp_path}/mine"
    # A SLURM job, also one of an array, has a number that it keeps.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    for array, folder in ((None, "slurm_77"), ("70", "slurm_70_3")):
        if array is not None:
            monkeypatch.setenv("SLURM_ARRAY_JOB_ID", array)
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
        cfg = compose_run(by_time, "resume=auto")
        RunFolder().on_run_start(cfg)
        assert cfg.hydra.run.dir == f"runs/mask_rcnn/{folder}"


def test_a_node_that_comes_late_learns_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 may find that nothing is to be done, and its store ends with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    folders = []
    for node in ("0", "1"):
        monkeypatch.setenv("NODE_RANK", node)
        reader, writer = os.pipe()
        if os.fork() == 0:
            time.sleep(1.5 * int(node))
            cfg = compose_run(f"{tmp_path}/${{now:%f}}", "trainer.num_nodes=2")
            RunFolder().on_run_start(cfg)
            os.write(writer, cfg.hydra.run.dir.encode())
            os._exit(0)
        folders.append(reader)
    first, second = (os.read(reader, 1000) for reader in folders)
    assert first == second
