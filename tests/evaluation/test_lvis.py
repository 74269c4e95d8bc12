"""LVIS's AP against LVIS's own package."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.evaluation.scoring import LVIS_NUMBERS, score
from mrcnn_lightning.user_error import UserError
from tests.evaluation.found import found

SIZE = 200
CATEGORIES = [{"id": 2 * n + 3, "name": f"class {n}", "frequency": "rcf"[n % 3]} for n in range(9)]
OFFICIAL = [
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@300", "ARs@300", "ARm@300", "ARl@300"),
]


def generated() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Images of which few classes were looked for, and more than 300 results on the first."""
    rng = np.random.default_rng(0)
    ids = [category["id"] for category in CATEGORIES]
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    results = []
    for image_id in range(1, 13):
        order = rng.permutation(ids).tolist()
        truth["images"].append(
            {
                "id": image_id,
                "coco_url": f"https://x/train2017/{image_id:012}.jpg",
                "height": SIZE,
                "width": SIZE,
                "neg_category_ids": order[4:6],
                "not_exhaustive_category_ids": [*order[:1], *order[4:5]],
            }
        )
        for _ in range(12):
            side = float(rng.integers(8, 150))
            x, y = (float(each) for each in rng.integers(0, SIZE - int(side), 2))
            polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
            entry = {"image_id": image_id, "category_id": int(rng.choice(order[:4]))}
            truth["annotations"].append(
                entry
                | {
                    "id": len(truth["annotations"]) + 1,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "segmentation": [polygon],
                }
            )
            for _ in range(40 if image_id == 1 else 3):
                moved = np.array([x, y, side, side]) + rng.normal(0, side / 20, 4)
                moved = np.array([*moved[:2].clip(0), *moved[2:].clip(4)])
                rle = pycocotools.mask.frPyObjects(moved[None], SIZE, SIZE)[0]
                # Some are of another class, which may or may not have been looked for.
                category = entry["category_id"] if rng.random() < 0.7 else int(rng.choice(ids))
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": category,
                        "score": round(float(rng.random()), 2),
                        "bbox": moved.tolist(),
                        "segmentation": rle | {"counts": rle["counts"].decode()},
                    }
                )
    return truth, results


@pytest.mark.parametrize(("iou_type", "key"), [("bbox", "bbox"), ("segm", "segmentation")])
def test_numbers_are_those_of_lvis(
    iou_type: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lvis = pytest.importorskip("lvis", reason="pip install lvis, which this is compared with")
    monkeypatch.setattr(np, "float", float, raising=False)  # gone from NumPy since 1.24
    truth, results = generated()
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps(truth))
    wanted = {"image_id", "category_id", "score", key}
    results = [{name: each[name] for name in wanted} for each in results]
    peer = lvis.LVISEval(str(file), copy.deepcopy(results), iou_type)
    peer.run()

    annotations = Annotations.load(file, cache_dir=tmp_path)
    ours = score(
        annotations.ground_truth(range(1, 13), of_masks=iou_type == "segm"),
        found(results),
        iou_type=iou_type,
        category_ids=annotations.category_ids,
        max_detections=1000,
    )
    assert list(ours.numbers) == list(LVIS_NUMBERS)
    for name, official in zip(LVIS_NUMBERS, OFFICIAL, strict=True):
        assert ours.numbers[name] == pytest.approx(peer.results[official], abs=1e-12), name
        assert 0 < ours.numbers[name] < 1
    of_classes = [values[values > -1].mean() for values in peer.eval["precision"][..., 0].T]
    assert ours.per_class.tolist() == pytest.approx(of_classes, abs=1e-12)


def test_images_are_named_by_their_addresses(tmp_path: Path) -> None:
    truth, _ = generated()
    truth["images"][1]["file_name"] = "COCO_val2014_000000000002.jpg"  # v0.5
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps(truth))
    annotations = Annotations.load(file, cache_dir=tmp_path)
    names = [annotations.file_name(number) for number in range(2)]
    assert names == ["train2017/000000000001.jpg", "000000000002.jpg"]


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        ("images", "neg_category_ids", [4], "image 1 has neg_category_ids=[4], which must be"),
        ("images", "not_exhaustive_category_ids", None, "not_exhaustive_category_ids=None"),
        ("categories", "frequency", "x", "category 3 has frequency='x', which must be r, c or f"),
    ],
)
def test_what_is_wrong_with_a_file(
    kind: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    truth = copy.deepcopy(generated()[0])
    truth[kind][0][key] = value
    file = tmp_path / "lvis.json"
    file.write_text(json.dumps(truth))
    with pytest.raises(UserError) as error:
        Annotations.load(file, cache_dir=tmp_path)
    assert message in str(error.value)
