"""Training in phases: each a fit of its own, from the last weights of the one before."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.training.test_resume import rows

Run = Callable[..., tuple[int, str]]
STAGES = "phases=[{backbone:{trainable_stages:0},trainer:{max_epochs:1}},{trainer.max_epochs:2}]"
RECORDERS = [
    "+callbacks.weights._target_=tests.training.recorder.WeightsOfEachRank",
    "+callbacks.weights.file=${run_dir}/weights",
    "+callbacks.batches._target_=tests.training.recorder.Recorder",
    "+callbacks.batches.file=${run_dir}/batches",
    "+callbacks.batches.kill_after=0",
]


def load(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content.get("state_dict", content)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[key]) for key, value in first.items())


def part(state: dict[str, Any], name: str) -> dict[str, Any]:
    found = {key: value for key, value in state.items() if key.startswith(f"model.{name}.")}
    assert found
    return found


def test_two_phases(run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    status, output = run_main(
        *tiny(STAGES, *RECORDERS, "seed=3", "data.preview=5", f"run_dir={run}")
    )
    assert status == 0, output[-2000:]
    titles = [line.partition(" - ")[2] for line in output.splitlines() if " of 2: " in line]
    assert titles == [
        "phase 1 of 2: backbone.trainable_stages=0 trainer.max_epochs=1",
        "phase 2 of 2: trainer.max_epochs=2",
    ]
    for number in (1, 2):
        folder = run / f"phase_{number}"
        assert {"config.yaml", "csv", "checkpoints", "pictures", "preview.png"} <= {
            path.name for path in folder.iterdir()
        }
        cfg = OmegaConf.load(folder / "config.yaml")
        assert cfg.seed == cfg.data.seed == 2 + number
        assert cfg.backbone.trainable_stages == (0 if number == 1 else 5)
        assert "val/ap" in (folder / "csv" / "metrics.csv").read_text()
    assert OmegaConf.load(run / "phase_2" / "config.yaml").weights == str(
        run / "phase_1" / "checkpoints" / "last.ckpt"
    )

    start, end = load(run / "phase_1" / "weights0_at_start"), load(run / "phase_1" / "weights0")
    assert same(part(start, "backbone"), part(end, "backbone"))
    for name in ("neck", "rpn", "box_head", "mask_head"):
        assert not same(part(start, name), part(end, name))
    assert same(end, load(run / "phase_1" / "checkpoints" / "last.ckpt"))
    assert same(end, load(run / "phase_2" / "weights0_at_start"))
    last = load(run / "phase_2" / "weights0")
    for name in ("backbone.body.conv1", "backbone.body.layer4", "mask_head"):
        assert not same(part(end, name), part(last, name))
    # An order of its own, and a schedule of its own.
    first, second = (rows(run / f"phase_{number}" / "batches0") for number in (1, 2))
    assert len(first) == 6 and len(second) == 12 and first != second[:6]
    with (run / "phase_2" / "csv" / "metrics.csv").open() as file:
        assert max(int(row["step"]) for row in csv.DictReader(file)) <= 12


def test_resumed_in_a_phase_or_after_one(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    def start(name: str, *more: str) -> Path:
        within_epoch = "callbacks.last_within_epoch"
        overrides = tiny(
            STAGES,
            *RECORDERS,
            "trainer.limit_val_batches=0",
            f"{within_epoch}.every_n_train_steps=8",
            f"{within_epoch}.filename='step{{step}}'",
            f"+{within_epoch}.auto_insert_metric_name=false",
            f"run_dir={tmp_path}/{name}",
            *more,
        )
        status, output = run_main(*overrides)
        assert status == 0, output[-2000:]
        return tmp_path / name

    whole = start("whole")
    in_phase = start("in", f"ckpt_path={whole}/phase_2/checkpoints/step8.ckpt")
    after_phase = start("after", f"ckpt_path={whole}/phase_1/checkpoints/last.ckpt")

    batches = rows(whole / "phase_2" / "batches0")
    assert len(batches) == 12
    assert not (in_phase / "phase_1").exists()
    assert rows(in_phase / "phase_2" / "batches0") == batches[8:]
    assert not (after_phase / "phase_1" / "batches0").exists()  # nothing was left to do
    assert rows(after_phase / "phase_2" / "batches0") == batches
    last = load(whole / "phase_2" / "checkpoints" / "last.ckpt")
    for run in (in_phase, after_phase):
        assert same(last, load(run / "phase_2" / "checkpoints" / "last.ckpt"))


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("5", "phases=5 is no list of dictionaries"),
        ("[{seed:1},2]", "phases=[{'seed': 1}, 2] is no list of dictionaries"),
        ("[{seed:1},{trainer:{max_epoch:2}}]", "phases[1] changes trainer.max_epoch, which the"),
        ("[{bakbone.depth:18}]", "phases[0] changes bakbone, which the configuration does not"),
        ("[{backbone:resnet101}]", "phases[0] sets backbone=resnet101, but backbone is a dict"),
        ("[{seed:1},{trainer.devices:2}]", "phases[1] changes trainer.devices, which is one for"),
        ("[{weights:COCO_V1}]", "phases[0] changes weights, which is one for the whole run"),
        ("[{},{backbone.trainable_stages:6}]", "backbone.trainable_stages=6 is not between"),
        ("[{},{trainer:null}]", "phases[1] sets trainer=None, but trainer is a dictionary"),
        ("[{},{seed:null}]", "seed=None is no whole number"),
        ("[{},{data.batch_size:0}]", "data.batch_size=0 is less than 1"),
        ("[{},{model.mask_head:null}]", "phases[1] cannot go on with the weights of the phases"),
    ],
)
def test_mistakes_show_before_the_first_phase(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path, phases: str, message: str
) -> None:
    status, output = run_main(*tiny(f"phases={phases}", f"run_dir={tmp_path}/run"))
    assert status == 1 and f"error: {message}" in output and "Traceback" not in output
    assert not (tmp_path / "run" / "phase_1").exists()


def test_checkpoints_that_do_not_go_with_the_phases(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    short = tiny("trainer.fast_dev_run=1")
    checkpoint = f"ckpt_path={tmp_path}/run/phase_2/checkpoints/last.ckpt"
    status, output = run_main(*short, "phases=[{},{}]", f"run_dir={tmp_path}/run")
    assert status == 0, output[-2000:]
    for phases, num in (("[{seed:1}]", 1), ("[]", 0), ("null", 0)):
        status, output = run_main(*short, f"phases={phases}", checkpoint)
        assert status == 1 and f"is of phase 2, but phases lists {num}: to resume it" in output
    # Evaluation asks for no phases.
    status, output = run_main(*short, "stage=validate", "phases=[{}]", checkpoint)
    assert status == 0, output[-2000:]
    status, output = run_main(*tiny("trainer.max_steps=1", f"run_dir={tmp_path}/plain"))
    assert status == 0, output[-2000:]
    checkpoint = f"ckpt_path={tmp_path}/plain/checkpoints/last.ckpt"
    status, output = run_main(*short, "phases=[{}]", checkpoint)
    assert status == 1 and "is of a run without phases, but phases lists 1" in output
