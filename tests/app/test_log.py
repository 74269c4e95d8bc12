"""What a run says: all of it also in its log, and nothing that is not so."""

import json
from collections.abc import Callable
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Run = Callable[..., tuple[int, str]]
NAMES = ["x[/red]", "x [bold]", "\\[y]"]


def test_the_log_holds_what_the_screen_showed(
    run_main: Run, tiny: Callable[..., list[str]], shapes_root: Path, tmp_path: Path
) -> None:
    overrides = []
    for split in ("train", "val"):
        content = json.loads((shapes_root / "annotations" / f"instances_{split}.json").read_text())
        for category, name in zip(content["categories"], NAMES, strict=True):
            category["name"] = name
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        overrides.append(f"data.{split}_json={tmp_path}/{split}.json")
    overrides += ["callbacks.pictures=null", "callbacks.best=null", "logger=[csv,tensorboard]"]
    run = tmp_path / "run"
    status, output = run_main(*tiny(*overrides, "trainer.max_steps=2", f"run_dir={run}"))
    assert status == 0, output[-2000:]
    log = (run / "train.log").read_text()
    for text in (output, log):
        assert all(f"│ ap/{name} " in text for name in NAMES)  # as they are, not as Rich's markup
        assert "│ model.rpn " in text and "FLOPs" not in text
        assert "smaller than the logging interval" in text  # a warning
    assert "`max_steps=2` reached" in log and "Tip:" not in log
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert "val/ap" in board.Tags()["scalars"] and "hp_metric" not in board.Tags()["scalars"]

    # Resumed within an epoch, without what Lightning would add by itself.
    off = [f"callbacks.{name}=null" for name in ("progress_bar", "model_summary", "last")]
    status, output = run_main(
        *tiny(*overrides, *off, "callbacks.last_within_epoch=null", "trainer.max_steps=3"),
        f"ckpt_path={run}/checkpoints/last.ckpt",
        f"run_dir={tmp_path}/resumed",
    )
    assert status == 0 and "COCO AP after 3 steps" in output, output[-2000:]
    assert "Epoch 0" not in output and "model.rpn" not in output
    assert not list((tmp_path / "resumed").rglob("*.ckpt"))
    assert "resumable" not in output


def test_the_log_holds_tracebacks(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    status, output = run_main(*tiny("data.batch_size=25", f"run_dir={tmp_path}/run"))
    assert status == 1 and "Traceback" not in output
    log = (tmp_path / "run" / "train.log").read_text()
    assert "Traceback (most recent call last)" in log and "UserError: data.batch_size=25" in log
