"""Images that cannot be read in the middle of a run: they stop it, or are skipped and counted."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.dataset import COCODataset
from mrcnn_lightning.data.sizing import Resize, shorter_side

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def root(shapes_root: Path, tmp_path: Path) -> Path:
    """The set, of which the pixels of two images of training and of one of validation are lost."""
    root = tmp_path / "set"
    shutil.copytree(shapes_root, root)
    for file in (*sorted((root / "train").iterdir())[3:5], sorted((root / "val").iterdir())[2]):
        file.write_bytes(file.read_bytes()[:500])  # its head says nothing of it
    return root


def logged(run: Path, metric: str) -> list[float]:
    with (run / "csv" / "metrics.csv").open() as table:
        return [float(row[metric]) for row in csv.DictReader(table) if row.get(metric)]


def test_skipped_and_counted(
    run_main: Run, tiny: Callable[..., list[str]], tmp_path: Path, root: Path
) -> None:
    run, policy = tmp_path / "run", ["data.damaged_images=skip", "data.num_workers=1"]
    common = [*tiny("trainer.max_epochs=2", "trainer.check_val_every_n_epoch=2"), *policy]
    status, output = run_main(*common, f"data_root={root}", f"run_dir={run}")
    assert status == 0, output[-2000:]
    assert logged(run, "train/damaged_images") == [2, 2]
    assert logged(run, "val/damaged_images") == [1]
    text = (run / "train.log").read_text()
    assert text.count("2 images cannot be read and are skipped: ") == 1
    assert text.count("1 images cannot be read and are skipped: ") == 1

    # The evaluation is that of the other images.
    file = root / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    lost = content["images"].pop(2)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != lost["id"]]
    (root / "fewer.json").write_text(json.dumps(content))
    evaluate = ["stage=validate", f"ckpt_path={run}/checkpoints/last.ckpt", f"data_root={root}"]
    for name, more in (("skip", []), ("fewer", [f"data.val_json={root}/fewer.json"])):
        status, output = run_main(*common, *evaluate, *more, f"run_dir={tmp_path}/{name}")
        assert status == 0, output[-2000:]
    for metric in ("val/box_ap", "val/mask_ap50", "val/box_ar100"):
        assert logged(tmp_path / "skip", metric) == logged(tmp_path / "fewer", metric)

    status, output = run_main(
        *common, f"data_root={root}", "data.damaged_images=stop", f"run_dir={tmp_path}/stop"
    )
    assert status == 1 and "error: cannot read the image" in output


def test_the_next_one_stands_in(root: Path, tmp_path: Path) -> None:
    def dataset(folder: Path) -> COCODataset:
        return COCODataset(
            Annotations.load(root / "annotations/instances_train.json", cache_dir=tmp_path),
            folder=folder,
            transform=Resize(rule=shorter_side, min_size=64, max_size=64),
            mini_mask_size=None,
            skip_empty=False,
            max_objects=None,
            boxes_from="file",
            copy_paste=0.0,
            skip_damaged=True,
            seed=0,
        )

    images = dataset(root / "train")
    assert images[0, 3].image_id == images[0, 4].image_id == images[0, 5].image_id
    assert images.is_damaged.nonzero()[:, 0].tolist() == [3, 4]
    with pytest.raises(ValueError, match="none of the 24 images in .* can be read"):
        dataset(tmp_path)[0, 0]
