"""Images of thousands of objects: the set, memory of a step and of a prediction, and the scores.

python benchmarks/dense.py --set DIR --images 4    # a set alone, to train on
python benchmarks/dense.py                         # memory against few objects, pycocotools' scores

G objects of an image.
"""

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import hydra
import numpy as np
import numpy.typing as npt
import torch
import typer
from omegaconf import OmegaConf
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from turns import device_name, peak_megabytes

from mrcnn_lightning.app.run import CONF
from mrcnn_lightning.evaluation.scoring import Found, score
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.results.image_detections import per_image
from mrcnn_lightning.structures import Batch, Targets

SIDE, MINI_MASK, CORNERS = 1024, 112, 24
FEW, MANY, DETECTIONS = 20, 2000, 3000
OVERRIDES = [
    "backbone.weights=null",
    "model.rpn.anchors.sizes=[[16],[32],[64],[128],[256]]",
    "model.rpn.selector.pre_nms_topk=4000",
    f"model.rpn.selector.num_proposals={DETECTIONS}",
    f"model.box_head.selector.num_detections={DETECTIONS}",
    # An untrained model finds as many as it may.
    "model.rpn.selector.nms_iou=0.95",
    "model.box_head.selector.nms_iou=0.99",
    "model.box_head.selector.min_score=0.0",
    "run_dir=unused",
]
Discs = npt.NDArray[np.float64]  # (G, 3) x, y of the centre, and radius


def discs(num: int, seed: int) -> Discs:
    """Discs that do not touch, each in a cell of its own."""
    rng = np.random.default_rng(seed)
    cells = int(np.ceil(np.sqrt(num)))
    side = SIDE / cells
    radius = rng.uniform(4.5, 8.5, num).clip(max=side / 2 - 1)
    place = rng.permutation(cells * cells)[:num]
    corner = np.stack([place % cells, place // cells], axis=1) * side
    room = (side - 2 * radius)[:, None]
    return np.concatenate(
        [corner + radius[:, None] + rng.random((num, 2)) * room, radius[:, None]], 1
    )


def write_set(folder: Path, images: int) -> None:
    """`train/`, `val/` and their annotations, each image with MANY discs."""
    (folder / "annotations").mkdir(parents=True)
    turn = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    for split, first in (("train", 0), ("val", 1000)):
        (folder / split).mkdir()
        content: dict[str, Any] = {"images": [], "annotations": []}
        for image_id in range(first, first + images):
            name = f"{image_id}.png"
            size = {"height": SIDE, "width": SIDE}
            content["images"].append({"id": image_id, "file_name": name, **size})
            rng = np.random.default_rng(image_id)
            picture = Image.fromarray(
                rng.normal(90, 14, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
            )
            draw = ImageDraw.Draw(picture)
            for x, y, radius in discs(MANY, image_id).tolist():
                outline = (np.array([x, y]) + radius * circle).round(2)
                tone = rng.integers(120, 235, 3)
                draw.polygon(
                    [tuple(point) for point in outline.tolist()], fill=tuple(tone.tolist())
                )
                entry = {"id": len(content["annotations"]) + 1, "image_id": image_id}
                entry |= {"category_id": 1, "iscrowd": 0, "area": np.pi * radius**2}
                entry |= {"bbox": [x - radius, y - radius, 2 * radius, 2 * radius]}
                content["annotations"].append(entry | {"segmentation": [outline.ravel().tolist()]})
            picture.save(folder / split / name)
        content["categories"] = [{"id": 1, "name": "disc"}]
        file = folder / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(content))


def _model(backbone: str) -> Detector:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [f"backbone={backbone}", *OVERRIDES])
    config = OmegaConf.to_container(cfg.model, resolve=True)
    model: Detector = hydra.utils.instantiate(config, _convert_="all")(class_names=["disc"])
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _batch(num: int) -> Batch:
    """Noise with so many discs, and their mini-masks."""
    x, y, radius = torch.from_numpy(discs(num, 0)).float().unbind(1)
    boxes = torch.stack([x - radius, y - radius, x + radius, y + radius], dim=1)[None]
    cell = (torch.arange(MINI_MASK) + 0.5) / MINI_MASK - 0.5
    disc = (cell**2 + cell[:, None] ** 2 < 0.25).to(torch.uint8)
    window = torch.tensor([[0.0, 0, SIDE, SIDE]])
    batch = Batch(
        images=torch.randint(0, 256, (1, 3, SIDE, SIDE), dtype=torch.uint8),
        image_ids=torch.ones(1, dtype=torch.int64),
        windows=window,
        scales=torch.ones(1, 2, dtype=torch.float64),
        original_sizes=torch.tensor([[SIDE, SIDE]]),
        seeds=torch.ones(1, dtype=torch.int64),
        targets=Targets(
            boxes=boxes,
            labels=torch.ones(1, num, dtype=torch.int64),
            crowd=torch.zeros(1, num, dtype=torch.bool),
            masks=disc.repeat(1, num, 1, 1),
            mask_frames=boxes.clone(),
        ),
    )
    return batch.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def training_step(backbone: str, num: int) -> Callable[[], None]:
    """Loss and gradients of an image of so many objects."""
    model, batch = _model(backbone).train(), _batch(num)

    def step() -> None:
        model.zero_grad()
        torch.stack(list(model.loss(batch).values())).sum().backward()

    return step


def prediction(backbone: str, num: int) -> Callable[[], None]:
    """So many detections of an image, with run lengths."""
    model, batch = _model(backbone).eval(), _batch(FEW)
    model.box_head.selector.num_detections = num

    def predict() -> None:
        (found,) = per_image(model.predict(batch), batch, model.paste)
        assert len(found) == num and found.rles is not None

    return predict


def _results(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """What a fair model would find: each disc and half of them again, all a little beside."""
    rng = np.random.default_rng(0)
    results = []
    for number in range(DETECTIONS * len(truth["images"])):
        true = truth["annotations"][number % len(truth["annotations"])]
        box = (np.array(true["bbox"]) + rng.normal(0, 1, 4)).clip(0.1).tolist()
        place = {"image_id": true["image_id"], "category_id": 1}
        results.append(place | {"bbox": box, "score": round(float(rng.random()), 4)})
    return results


def greatest_difference(images: int) -> tuple[float, dict[str, float]]:
    """Of AP and AR at 100 and at DETECTIONS from pycocotools', and ours."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1}]}
    for image_id in range(1, images + 1):
        truth["images"].append({"id": image_id, "height": SIDE, "width": SIDE})
        for x, y, radius in discs(MANY, image_id).tolist():
            entry = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": 1}
            box = [x - radius, y - radius, 2 * radius, 2 * radius]
            truth["annotations"].append(entry | {"bbox": box, "area": 4 * radius**2, "iscrowd": 0})
    results = _results(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        peer_truth = COCO()
        peer_truth.dataset = copy.deepcopy(truth)
        peer_truth.createIndex()
        peer = COCOeval(peer_truth, peer_truth.loadRes(copy.deepcopy(results)), "bbox")
        peer.params.maxDets = [1, 10, 100, DETECTIONS]
        peer.evaluate()
        peer.accumulate()
        peer.summarize()
    precision, recall = peer.eval["precision"][..., 0, 3], peer.eval["recall"][..., 0, 3]
    wanted = [
        *peer.stats,
        *(each.mean() for each in (precision, precision[0], precision[5], recall)),
    ]
    found = Found(
        image_ids=np.array([each["image_id"] for each in results]),
        category_ids=np.ones(len(results), dtype=np.int64),
        scores=np.array([each["score"] for each in results]),
        boxes=np.array([each["bbox"] for each in results]),
        rles=None,
    )
    ours = score(truth, found, iou_type="bbox", category_ids=[1], max_detections=DETECTIONS)
    return float(np.abs(np.array(list(ours.numbers.values())) - wanted).max()), ours.numbers


def main(
    set_: Annotated[Path | None, typer.Option("--set", help="Write a set there, and end.")] = None,
    images: Annotated[int, typer.Option(help="Of each split, and for the scores.")] = 2,
    backbone: Annotated[str, typer.Option()] = "resnet50",
) -> None:
    """Print what a step and a prediction hold with few and with many objects, and the scores."""
    if set_ is not None:
        write_set(set_, images)
        return
    steps = {num: peak_megabytes(training_step, backbone, num) for num in (FEW, MANY)}
    predictions = {num: peak_megabytes(prediction, backbone, num) for num in (100, DETECTIONS)}
    difference, numbers = greatest_difference(images)
    for what, values in (("objects: a training step", steps), ("detections", predictions)):
        for num, megabytes in values.items():
            print(f"{num:5} {what} holds {megabytes:.0f} MB")
    print(f"greatest difference from pycocotools: {difference:.1e}")
    content = {"device": device_name(), "steps": steps, "predictions": predictions}
    print(json.dumps(content | {"difference": difference, "numbers": numbers}))


if __name__ == "__main__":
    typer.run(main)
