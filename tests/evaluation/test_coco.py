"""The metric against pycocotools, and against published numbers, on one process and on two."""

import copy
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.cocoeval
import pycocotools.mask
import pytest
import torch
import torch.multiprocessing
from pycocotools.coco import COCO

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.evaluation.coco import COCOMetric
from mrcnn_lightning.evaluation.scoring import IOUS, NUMBERS, RECALLS
from mrcnn_lightning.results.image_detections import ImageDetections
from tests.conftest import shared


def golden(name: str) -> Any:
    return json.loads(shared(f"data/coco_eval_golden/{name}.json").read_text())


def metric(file: Path, categories: list[dict[str, Any]], **changes: Any) -> COCOMetric:
    ordered = sorted(categories, key=lambda category: category["id"])
    arguments = {
        "category_ids": [category["id"] for category in ordered],
        "class_names": [category["name"] for category in ordered],
        "has_masks": True,
        "max_detections": 100,
    }
    with tempfile.TemporaryDirectory() as cache:  # what is mapped stays readable
        annotations = Annotations.load(file, cache_dir=cache)
    return COCOMetric(annotations.ground_truth, **(arguments | changes))


def detections(
    truth: Any, boxes: list[dict[str, Any]], masks: list[dict[str, Any]]
) -> list[ImageDetections]:
    """Results files as what the model gives; both have the same detections in the same order."""
    labels = {c: k + 1 for k, c in enumerate(sorted(c["id"] for c in truth["categories"]))}
    images = []
    for image in truth["images"]:
        found = [
            (box, mask)
            for box, mask in zip(boxes, masks, strict=True)
            if box["image_id"] == image["id"]
        ]
        corners = torch.tensor([box["bbox"] for box, _ in found], dtype=torch.float64).view(-1, 4)
        corners[:, 2:] += corners[:, :2]
        images.append(
            ImageDetections(
                image_id=image["id"],
                size=(image["height"], image["width"]),
                boxes=corners,
                scores=torch.tensor([box["score"] for box, _ in found], dtype=torch.float64),
                labels=torch.tensor([labels[box["category_id"]] for box, _ in found]).long(),
                rles=[mask["segmentation"]["counts"].encode() for _, mask in found],
            )
        )
    return images


@pytest.fixture(scope="module")
def truth() -> Any:
    return golden("instances_val2014_100")


@pytest.fixture(scope="module")
def images(truth: Any) -> list[ImageDetections]:
    boxes = golden("instances_val2014_fakebbox100_results")
    return detections(truth, boxes, golden("instances_val2014_fakesegm100_results"))


TRUTH_FILE = "data/coco_eval_golden/instances_val2014_100.json"


def assert_golden(metrics: dict[str, float], truth: Any) -> None:
    """All 24 numbers and AP of every class, to 1e-9."""
    expected = golden("expected_pycocotools")
    names = {str(category["id"]): category["name"] for category in truth["categories"]}
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        for name, value in zip(NUMBERS, expected[iou_type]["stats"], strict=True):
            assert metrics[f"{kind}_{name}"] == pytest.approx(value, abs=1e-9), (kind, name)
        for category, value in expected[iou_type]["ap_per_category_id"].items():
            ours = metrics.get(f"{kind}_ap/{names[category]}", -1)
            assert ours == pytest.approx(value, abs=1e-9), (kind, names[category])


def test_golden_values(truth: Any, images: list[ImageDetections]) -> None:
    scored = metric(shared(TRUTH_FILE), truth["categories"])
    for start in range(0, 100, 7):
        scored.update(images[start : start + 7])
    assert_golden(scored.compute(), truth)


def test_pycocotools_gives_the_golden_values_too(truth: Any, images: list[ImageDetections]) -> None:
    expected = golden("expected_pycocotools")
    ours = metric(shared(TRUTH_FILE), truth["categories"])
    ours.update(images)
    ours.compute()
    truth = COCO(shared(TRUTH_FILE))
    for iou_type, kind in (("bbox", "bbox"), ("segm", "segm")):
        found = truth.loadRes(
            str(shared(f"data/coco_eval_golden/instances_val2014_fake{kind}100_results.json"))
        )
        peer = pycocotools.cocoeval.COCOeval(truth, found, iou_type)
        peer.params.imgIds = sorted(truth.getImgIds())
        peer.evaluate()
        peer.accumulate()
        peer.summarize()
        assert np.abs(peer.stats - expected[iou_type]["stats"]).max() < 1e-9
        assert ours.evaluated is not None
        curves = ours.evaluated.precision[{"bbox": "box", "segm": "mask"}[iou_type]]
        assert peer.params.iouThrs == pytest.approx(IOUS)
        assert peer.params.recThrs == pytest.approx(RECALLS)
        assert np.abs(peer.eval["precision"][:, :, :, 0, -1] - curves).max() < 1e-9


def _rank(rank: int, port: int, images: list[ImageDetections], truth: Any, out: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3
    )
    scored = metric(shared(TRUTH_FILE), truth["categories"])
    # 75 images, 26 with one that the other rank has as well, and none at all.
    shares = [images[:75], images[75:] + images[:1], []]
    for start in range(0, len(shares[rank]), 10):
        scored.update(shares[rank][start : start + 10])
    if rank > 0:  # the first one computes for all
        scored._images = None  # type: ignore[assignment, method-assign]
    metrics = scored.compute()
    Path(out, f"{rank}.json").write_text(json.dumps([metrics, scored.results()]))
    torch.distributed.destroy_process_group()


def test_ranks_with_uneven_repeated_and_no_images(
    truth: Any, images: list[ImageDetections], tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _rank, (port, images, truth, str(tmp_path)), nprocs=3, start_method="fork"
    )
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    for rank, (metrics, results) in enumerate(ranks):
        assert_golden(metrics, truth)
        assert len(results) == (734 if rank == 0 else 0)


def test_on_an_apple_gpu_the_state_stays_on_the_host(
    truth: Any, images: list[ImageDetections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(COCOMetric, "device", torch.device("mps"))
    scored = metric(shared(TRUTH_FILE), truth["categories"])
    scored.update(images)
    assert_golden(scored.compute(), truth)


def test_images_without_detections(truth: Any, images: list[ImageDetections]) -> None:
    scored = metric(shared(TRUTH_FILE), truth["categories"])
    nothing = torch.zeros(0, dtype=torch.float64)
    for image in images[:3]:
        scored.update(
            [
                ImageDetections(
                    image.image_id, image.size, nothing.view(0, 4), nothing, nothing.long(), []
                )
            ]
        )
    assert scored.compute()["mask_ap"] == 0
    assert scored.results() == []


def test_only_the_images_seen_count(truth: Any, images: list[ImageDetections]) -> None:
    scored = metric(shared(TRUTH_FILE), truth["categories"])
    scored.update(images[:10])
    scored.update(images[5:10])
    metrics = scored.compute()
    peer_truth = COCO(shared(TRUTH_FILE))
    found = peer_truth.loadRes(
        str(shared("data/coco_eval_golden/instances_val2014_fakesegm100_results.json"))
    )
    peer = pycocotools.cocoeval.COCOeval(peer_truth, found, "segm")
    peer.params.imgIds = sorted(image.image_id for image in images[:10])
    peer.evaluate()
    peer.accumulate()
    peer.summarize()
    for name, value in zip(NUMBERS, peer.stats, strict=True):
        assert metrics[f"mask_{name}"] == pytest.approx(value, abs=1e-9)
    assert len(scored.results()) == sum(len(image.labels) for image in images[:10])


def test_boxes_alone(truth: Any, images: list[ImageDetections]) -> None:
    scored = metric(shared(TRUTH_FILE), truth["categories"], has_masks=False)
    for image in images:
        image = ImageDetections(**(vars(image) | {"rles": None}))
        scored.update([image])
    metrics = scored.compute()
    assert metrics["box_ap"] == pytest.approx(golden("expected_pycocotools")["bbox"]["stats"][0])
    assert not any(name.startswith("mask") for name in metrics)
    assert "segmentation" not in scored.results()[0]


def test_files_that_count_from_0_and_say_less_than_coco(tmp_path: Path) -> None:
    """An annotation id of 0 means "no match" to the evaluation; area and iscrowd may be missing."""
    square = [[10.0, 10, 30, 10, 30, 30, 10, 30]]
    truth = {
        "images": [{"id": 0, "file_name": "a.png", "height": 50, "width": 50}],
        "categories": [{"id": 0, "name": "thing"}],
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 0,
                "bbox": [10, 10, 20, 20],
                "segmentation": square,
            }
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    scored = metric(tmp_path / "truth.json", truth["categories"])
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(square, 50, 50))
    box = torch.tensor([[10.0, 10, 30, 30]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    scored.update([ImageDetections(0, (50, 50), box, one, one.long(), [rle["counts"]])])
    metrics = scored.compute()
    assert metrics["box_ap"] == metrics["mask_ap"] == metrics["mask_ap/thing"] == pytest.approx(1)
    assert metrics["mask_ap_small"] == pytest.approx(1) and metrics["mask_ap_large"] == -1


def test_nothing_was_seen(truth: Any) -> None:
    scored = metric(shared(TRUTH_FILE), truth["categories"])
    assert scored.results() == []


def test_a_crowd_that_is_only_a_box(tmp_path: Path) -> None:
    thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "iscrowd": 0}
    square = [[10.0, 10, 30, 10, 30, 30, 10, 30]]
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            thing | {"segmentation": square},
            thing | {"id": 2, "iscrowd": 1, "bbox": [35, 35, 10, 10]},
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    scored = metric(tmp_path / "truth.json", truth["categories"])
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(square, 50, 50))
    box = torch.tensor([[10.0, 10, 30, 30]], dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    scored.update([ImageDetections(1, (50, 50), box, one, one.long(), [rle["counts"]])])
    metrics = scored.compute()
    assert metrics["box_ap"] == metrics["mask_ap"] == pytest.approx(1)


def test_what_training_leaves_out_is_not_looked_for(truth: Any, tmp_path: Path) -> None:
    """Perfect detections are perfect, also where boxes without area were annotated."""
    damaged = copy.deepcopy(truth)
    for entry in damaged["annotations"][::8]:
        entry["bbox"][2:] = [0, 0]
    (tmp_path / "truth.json").write_text(json.dumps(damaged))
    scored = metric(tmp_path / "truth.json", truth["categories"], has_masks=False)
    labels = {c: k + 1 for k, c in enumerate(sorted(c["id"] for c in truth["categories"]))}
    for image in truth["images"]:
        found = [
            (x, y, x + width, y + height, labels[entry["category_id"]])
            for entry in damaged["annotations"]
            for x, y, width, height in [entry["bbox"]]
            if entry["image_id"] == image["id"] and not entry["iscrowd"] and width
        ]
        values = torch.tensor(found, dtype=torch.float64).view(-1, 5)
        scores = torch.ones(len(found), dtype=torch.float64)
        size = (image["height"], image["width"])
        scored.update(
            [ImageDetections(image["id"], size, values[:, :4], scores, values[:, 4].long(), None)]
        )
    metrics = scored.compute()
    assert metrics["box_ap"] == metrics["box_ap_small"] == pytest.approx(1)
