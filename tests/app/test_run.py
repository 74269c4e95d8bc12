"""A run as its user sees it, above all when something is wrong: one sentence, and what to do."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import torch
from hydra.errors import InstantiationException
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset

from mrcnn_lightning.app.errors import in_one_sentence, sentence
from mrcnn_lightning.user_error import UserError
from tests.conftest import compose

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def fails(run_main: Run) -> Callable[..., str]:
    """The one line that a failing command ends with."""

    def run(*arguments: str) -> str:
        status, output = run_main(*arguments)
        assert status == 1 and "Traceback" not in output, output[-2000:]
        sentence, details = output.strip().splitlines()[-2:]
        assert details.startswith("(details: ") and details.endswith("error.txt)")
        return sentence

    return run


def test_resnet101_on_four_devices_is_what_it_says() -> None:
    cfg = compose("backbone=resnet101", "trainer.devices=4")
    assert cfg.model.backbone.depth == 101 and cfg.backbone.weights == "IMAGENET1K_V1"
    assert cfg.data.batch_size == 16 and cfg.trainer.devices == 4
    trainer = hydra.utils.instantiate(
        cfg.trainer, _convert_="all", accelerator="cpu", logger=False, default_root_dir="."
    )
    assert isinstance(trainer.strategy, DDPStrategy) and trainer.world_size == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_more_devices_than_there_are(fails: Callable[..., str]) -> None:
    line = fails("backbone=resnet101", "trainer.devices=4")
    assert line == (
        "error: trainer.devices=4, but this machine has no GPU; for 4 processes on its CPU, say "
        "trainer.accelerator=cpu"
    )


def test_no_coco_on_disk(fails: Callable[..., str]) -> None:
    line = fails()
    assert "data.train_json=data/coco/annotations/instances_train2017.json does not exist" in line
    assert "data_root=DIR" in line and "experiment=shapes" in line


def test_missing_image_files(
    fails: Callable[..., str], tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    line = fails(*tiny(f"data.train_images={tmp_path}/empty"))
    assert "24 of 24 images are missing from" in line and "000001.png, 000002.png" in line


def test_annotations_of_unknown_categories(
    fails: Callable[..., str], tiny: Callable[..., list[str]], shapes_root: Path, tmp_path: Path
) -> None:
    content = json.loads((shapes_root / "annotations" / "instances_train.json").read_text())
    content["categories"].pop()
    (tmp_path / "train.json").write_text(json.dumps(content))
    line = fails(*tiny(f"data.train_json={tmp_path}/train.json"))
    assert "annotations name a category that the file does not list: annotation" in line


def test_misspelt_options(run_main: Run) -> None:
    status, output = run_main("experiment=shapes", "trainer.devcies=2")
    assert status == 1 and "Traceback" not in output
    assert "error: Could not override 'trainer.devcies'" in output and "+trainer" not in output
    assert "did you mean trainer.devices?" in output
    status, output = run_main("backbone=resnet51")
    assert status == 1 and "Traceback" not in output
    assert "Could not find 'backbone/resnet51'" in output and "resnet50" in output
    status, output = run_main("experiment=shapes", "stage=fitt")
    assert status == 1 and "stage=fitt is not one of fit, validate, test, predict" in output


def test_metrics_that_are_not_logged(
    fails: Callable[..., str], tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    short = ("trainer.max_steps=1", f"run_dir={tmp_path}/run")
    line = fails(*tiny("callbacks.early_stopping.monitor=val/foo", *short))
    assert line.startswith("error: callbacks.early_stopping.monitor=val/foo is no metric that")
    assert "val/ap" in line or "val/" in line.partition("did you mean ")[2]
    line = fails(*tiny("callbacks.best.monitor=val/mask-ap50", *short))
    assert "callbacks.best.monitor=val/mask-ap50" in line and "val/mask_ap50?" in line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_options_that_a_part_does_not_have(
    fails: Callable[..., str], tiny: Callable[..., list[str]]
) -> None:
    message = fails(*tiny("+data.batchsize=2"))
    assert "data has the option batchsize, which the part chosen there does not know" in message


def test_checkpoints_that_are_not_there_or_damaged(
    fails: Callable[..., str], tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert "no such file: nowhere.ckpt" in fails(*tiny("ckpt_path=nowhere.ckpt"))
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    assert "bad.ckpt is damaged" in fails(*tiny(f"ckpt_path={tmp_path}/bad.ckpt"))
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "no checkpoint of this project" in fails(*tiny(f"ckpt_path={tmp_path}/other.ckpt"))


def test_an_image_that_cannot_be_decoded_is_named_also_by_a_worker(
    fails: Callable[..., str], tiny: Callable[..., list[str]], shapes_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for image in (shapes_root / "train").iterdir():
        (folder / image.name).write_bytes(image.read_bytes()[:500])
    for workers in (0, 1):
        line = fails(*tiny(f"data.train_images={folder}", f"data.num_workers={workers}"))
        assert line.startswith("error:") and "cannot read the image" in line


def test_a_sweep_makes_a_folder_for_each_job(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Real runs; what else sweeps do is in tests/app/sweeps, with jobs that take no time."""
    status, output = run_main(
        "-m", *tiny("data.batch_size=400,4", "trainer.max_steps=2", "callbacks.pictures=null")
    )
    assert status == 1 and "Traceback" not in output
    (sweep,) = (tmp_path / "runs" / "shapes").iterdir()
    assert (
        output.splitlines()[-1]
        == f"error: 1 of 2 jobs did not finish: 0 (in {sweep.relative_to(tmp_path)})"
    )
    assert "job 0 failed: data.batch_size=400, but" in output
    assert {"error.txt", "run.json"} <= {path.name for path in (sweep / "0").iterdir()}
    job = sweep / "1"
    assert {"config.yaml", "csv", "checkpoints"} <= {path.name for path in job.iterdir()}
    last = torch.load(job / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    # A run that ends within an epoch is evaluated all the same.
    assert "val/mask_ap" in (job / "csv" / "metrics.csv").read_text()


@pytest.mark.slow
def test_each_job_of_a_sweep_starts_processes_for_its_devices(
    run_main: Run, tiny: Callable[..., list[str]]
) -> None:
    devices = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_steps=10")
    status, output = run_main(
        "-m", *tiny("optimizer.lr=0.001,0.002", "callbacks.pictures=null", *devices)
    )
    assert status == 0, output[-2000:]
    assert output.count("MEMBER: 1/2") == output.count("MEMBER: 2/2") == 2


def test_several_devices_in_a_sweep_in_one_process_are_refused(
    run_main: Run, tiny: Callable[..., list[str]]
) -> None:
    devices = ("trainer.accelerator=cpu", "trainer.devices=2", "hydra/launcher=basic")
    status, output = run_main("-m", *tiny("optimizer.lr=0.005,0.01", *devices))
    assert status == 1 and "Traceback" not in output
    assert "error: trainer.devices=2, but this sweep's launcher" in output


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.max_steps=2"],
        ["trainer.max_steps=2", "trainer.check_val_every_n_epoch=1"],
        ["trainer.max_epochs=1", "trainer.limit_val_batches=0"],
        ["trainer.max_steps=2", "logger=none"],
        ["trainer.max_steps=2", "model=faster_rcnn"],
    ],
    ids=str,
)
def test_runs_that_end_early_or_say_little(
    run_main: Run, tiny: Callable[..., list[str]], overrides: list[str]
) -> None:
    status, output = run_main(*tiny(*overrides))
    assert status == 0, output[-2000:]


def test_evaluations_by_steps_are_all_within_training(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    """As in the published recipes: across epochs (of 6 steps here), the last at the last step."""
    status, output = run_main(
        *tiny(
            "trainer.max_epochs=-1",
            "trainer.max_steps=14",
            "trainer.check_val_every_n_epoch=null",
            "trainer.val_check_interval=7",
            "callbacks.early_stopping=null",
            f"run_dir={tmp_path}/run",
        )
    )
    assert status == 0, output[-2000:]
    titles = [line.strip() for line in output.splitlines() if "COCO AP after" in line]
    assert titles == ["COCO AP after 7 steps", "COCO AP after 14 steps"]
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


def test_devices_that_lightning_refuses(
    fails: Callable[..., str], tiny: Callable[..., list[str]]
) -> None:
    line = fails(*tiny("trainer.accelerator=cpu", "trainer.devices=[0]"))
    assert "`devices` selected with `CPUAccelerator`" in line


def test_stages_that_need_a_model(
    fails: Callable[..., str], tiny: Callable[..., list[str]]
) -> None:
    line = fails(*tiny("stage=validate"))
    assert line == "error: stage=validate needs a trained model: give ckpt_path or weights"


def test_checkpoints_of_another_architecture(
    fails: Callable[..., str], run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    status, output = run_main(*tiny("trainer.max_steps=1", f"run_dir={tmp_path}/run"))
    assert status == 0, output[-2000:]
    checkpoint = f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    for stage in ("stage=validate", "stage=fit"):
        line = fails(*tiny(stage, checkpoint, "backbone.width=16"))
        assert "ckpt_path is of another architecture:" in line and "config.yaml" in line
    status, output = run_main(*tiny("stage=validate", f"ckpt_path={tmp_path}/run/checkpoints/x"))
    assert status == 1 and "no such file" in output


def test_annotations_that_a_stage_needs(
    fails: Callable[..., str],
    tiny: Callable[..., list[str]],
    shapes_root: Path,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    content = json.loads((shapes_root / "annotations" / "instances_val.json").read_text())
    for entry in content["annotations"][:2]:
        entry["segmentation"] = []
    (tmp_path / "val.json").write_text(json.dumps(content))
    line = fails(*tiny(f"data.val_json={tmp_path}/val.json"))
    assert "2 objects of data.val_json=" in line and "(annotations 1, 2): model=faster" in line
    del content["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(content))
    same = ("backbone.width=16", "model.neck.out_channels=48", "model.box_head.trunk.hidden=256")
    line = fails(
        *tiny(
            "stage=test", f"ckpt_path={checkpoint}", f"data.test_json={tmp_path}/test.json", *same
        )
    )
    assert "test.json has no annotations: stage=predict needs none" in line


def test_a_resumed_run_keeps_the_best_so_far(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    first = tiny("trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1")
    status, output = run_main(*first, f"run_dir={tmp_path}/first")
    assert status == 0, output[-2000:]
    folder = tmp_path / "first" / "checkpoints"
    # As if it had been much better than what comes.
    last = torch.load(folder / "last.ckpt", weights_only=True)
    (state,) = (s for name, s in last["callbacks"].items() if name.startswith("BestCheckpoint"))
    state["best_model_score"] = torch.tensor(0.9)
    torch.save(last, folder / "last.ckpt")
    status, output = run_main(
        *tiny("trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1"),
        f"ckpt_path={folder}/last.ckpt",
        f"run_dir={tmp_path}/second",
    )
    assert status == 0, output[-2000:]
    best = tmp_path / "second" / "checkpoints" / "best.ckpt"
    assert best.read_bytes() == (folder / "best.ckpt").read_bytes()


def test_validate_and_predict_stages(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path, shapes_root: Path
) -> None:
    status, output = run_main(*tiny("trainer.max_steps=2", f"run_dir={tmp_path}/fit"))
    assert status == 0, output[-2000:]
    checkpoint = f"ckpt_path={tmp_path}/fit/checkpoints/last.ckpt"
    status, output = run_main(*tiny("stage=validate", checkpoint))
    assert status == 0 and "ap_medium" in output, output[-2000:]
    content = json.loads((shapes_root / "annotations" / "instances_val.json").read_text())
    del content["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(content))
    status, output = run_main(
        *tiny(
            "stage=predict",
            checkpoint,
            f"data.test_json={tmp_path}/test.json",
            "model.box_head.selector.min_score=0.0",
            f"run_dir={tmp_path}/predict",
        )
    )
    assert status == 0, output[-2000:]
    results = json.loads((tmp_path / "predict" / "predictions.json").read_text())
    assert {result["category_id"] for result in results} <= {3, 7, 12}
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(results[0])


def test_fine_tuning_from_a_checkpoint_of_ours(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    status, output = run_main(*tiny("trainer.max_steps=1", f"run_dir={tmp_path}/first"))
    assert status == 0, output[-2000:]
    weights = f"weights={tmp_path}/first/checkpoints/last.ckpt"
    status, output = run_main(*tiny("trainer.max_steps=1", weights))
    assert status == 0, output[-2000:]
    status, output = run_main(*tiny("trainer.max_steps=1", weights, "model=faster_rcnn"))
    assert status == 1 and "is not of this architecture" in output


class Dies(Dataset[int]):
    """Its reader is killed, as by a system that has no memory left."""

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index

    def __len__(self) -> int:
        return 1


def test_a_data_worker_that_is_killed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, in_one_sentence(tmp_path, in_sweep=False):
        next(iter(DataLoader(Dies(), num_workers=1)))
    output = capfd.readouterr().err
    assert end.value.code == 1 and "Traceback" not in output
    # torch finds out in two ways, of which one knows the signal.
    assert re.search(
        "error: a data worker (was killed by signal: Killed|exited unexpectedly), mostly for lack "
        "of memory: set data.num_workers lower",
        output,
    )
    shared = "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that "
    shared += "dataloader's workers are out of shared memory. Please try to raise your limit."
    assert "--shm-size" in sentence(RuntimeError(shared))


def test_what_lightning_and_torch_refuse_is_one_sentence(
    tiny: Callable[..., list[str]], run_main: Callable[..., tuple[int, str]]
) -> None:
    for word, message in (
        ("trainer.val_check_interval=100000", "error: trainer: "),
        ("~model.rpn.num_convs", "error: model.rpn: RPN.__init__() missing 1 required"),
    ):
        status, output = run_main(*tiny("trainer.max_steps=1", word))
        line = next(line for line in output.splitlines() if line.startswith("error: "))
        assert status == 1 and message in line and "Traceback" not in output


def test_an_items_number_is_a_part_of_its_key() -> None:
    """As it is typed; Hydra leaves out the dot."""
    error = InstantiationException("Error in call to target 'x':\nfull_key: data.train_transforms0")
    error.__cause__ = UserError("min_size=0 is too little")
    assert sentence(error) == "data.train_transforms.0.min_size=0 is too little"
