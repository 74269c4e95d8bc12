"""`mrcnn data convert`, `split`, `merge` and `subset`, from the command line to a training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mrcnn_lightning.app.cli import app


def mrcnn(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, ["data", *map(str, words)])
    assert done.exit_code == status, done.output
    return " ".join(done.output.split())


def test_from_yolo_to_a_training(
    shapes_root: Path,
    tmp_path: Path,
    tiny: Callable[..., list[str]],
    run_main: Callable[..., tuple[int, str]],
) -> None:
    """Converted there and back, split, merged with other images, a part of it: and it trains."""
    files, images = shapes_root / "annotations", shapes_root / "train"
    first = json.loads((files / "instances_train.json").read_text())
    num_objects = sum(not each["iscrowd"] for each in first["annotations"])
    mrcnn(
        *("convert", files / "instances_train.json", tmp_path / "yolo"),
        *("--to", "yolo", "--images", images, "--place", "link"),
    )
    said = mrcnn("convert", tmp_path / "yolo", tmp_path / "coco.json", "--to", "coco")
    assert f"(coco): {len(first['images'])} images, {num_objects} objects" in said
    said = mrcnn("split", tmp_path / "coco.json", "--images", images, "--out", tmp_path / "parts")
    assert "train=" not in said and "data.train_json=" in said
    other = files / "instances_val.json"
    said = mrcnn(
        *("merge", tmp_path / "parts/train.json", other, "--out", tmp_path / "merged.json"),
        *("--images", images, "--images", shapes_root / "val"),
    )
    assert f"relative to {shapes_root}" in said.replace(" /", "/").replace("to/", "to /")
    mrcnn(
        *("subset", tmp_path / "merged.json", "--out", tmp_path / "some.json"),
        *("--classes", "disc,box", "--num-images", 8),
    )
    status, output = run_main(
        *tiny(
            f"data.train_json={tmp_path}/some.json",
            f"data.train_images={shapes_root}",
            f"data.val_json={tmp_path}/some.json",
            f"data.val_images={shapes_root}",
            "trainer.max_steps=1",
            "trainer.limit_val_batches=0",
            f"run_dir={tmp_path}/run",
        )
    )
    assert status == 0, output[-2000:]


PARTS = "instances_val=0.5,other=0.5"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split", "J", "--images", "I", "--out", "O", "--parts", "train=0.8,val=0.3"], "is 1.1"),
        (["split", "J", "--images", "I", "--out", "O", "--parts", "train"], "train=0.8"),
        (["split", "J", "--images", "O", "--out", "O"], "10 of 10 images are missing"),
        (["split", "J", "--images", "I", "--out", "O", "--parts", "..=0.5,b=0.5"], "plain enough"),
        (["split", "J", "--images", "I", "--out", "D", "--parts", PARTS], "give another --out"),
        (["subset", "J", "--out", "O"], "say which part"),
        (["subset", "J", "--out", "J", "--num-images", "1"], "give another --out"),
        (["subset", "J", "--out", "O", "--classes", ""], "name at least one class"),
        (["merge", "J", "K", "--out", "J"], "give another --out"),
        (["merge", "J", "K", "--out", "O", "--class-map", "M"], "a line `old name: new name`"),
        (["subset", "J", "--out", "O", "--classes", "horse"], "there is no class horse"),
        (["merge", "J", "J", "--out", "O"], "two different files are needed"),
        (["convert", "J", "O", "--to", "coco"], "O must be a file for coco"),
        (["convert", "I", "O", "--to", "coco"], "is of no format that is known"),
        (["convert", "J", "O", "--to", "yolo", "--part", "val"], "the format coco has no parts"),
        (["convert", "J", "O", "--to", "voc", "--place", "copy"], "give --images"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    shapes_root: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    places = {
        "J": shapes_root / "annotations/instances_val.json",
        "K": shapes_root / "annotations/instances_train.json",
        "D": shapes_root / "annotations",
        "I": shapes_root / "val",
        "O": tmp_path / "O",
        "M": tmp_path / "map.yaml",
    }
    (tmp_path / "map.yaml").write_text("disc: ''\n")
    before = places["J"].read_bytes()
    output = mrcnn(*(places.get(word, word) for word in words), status=1)
    assert (
        said in output.replace(str(tmp_path), "").replace("/O", "O") and "Traceback" not in output
    )
    assert places["J"].read_bytes() == before
