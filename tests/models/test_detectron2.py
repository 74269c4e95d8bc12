"""Detectron2's models: its keys, and its inference written here from its definitions.

`reference` knows nothing of our code: it reads a state under Detectron2's own keys, whose scores
have the background last and whose cell anchors go through sizes, then ratios.
"""

import math
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.ops import batched_nms, roi_align

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.structures import Batch
from mrcnn_lightning.weights.load import load_backbone, load_detector
from mrcnn_lightning.weights.torchvision import COCO_80
from tests.conftest import BACKBONES, build_model, make_batch, published
from tests.models.test_backbones import build

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# Published configurations: what differs from mask_rcnn_R_50_FPN.
ARCHITECTURES = {
    "R50-FPN": {"model": "mask_rcnn_d2"},
    "R101-FPN": {"model": "mask_rcnn_d2", "depth": 101, "backbone": "resnet101_caffe"},
    "X101-FPN": {
        "model": "mask_rcnn_d2",
        "backbone": "resnext101_32x8d_caffe",
        "depth": 101,
        "groups": 32,
        "per_group": 8,
    },
    "R50-C4": {"model": "mask_rcnn_d2_c4", "kind": "c4"},
    "R50-DC5": {"model": "mask_rcnn_d2_dc5", "kind": "dc5"},
    "R50-FPN-GN": {"model": "mask_rcnn_d2_gn", "norm": "gn", "convs": 4},
    "R50-FPN-Cascade": {"model": "cascade_mask_rcnn", "stages": 3},
}


def keys_and_shapes(
    num_classes: int,
    *,
    depth: int = 50,
    groups: int = 1,
    per_group: int = 64,
    kind: str = "fpn",
    norm: str = "bn",
    convs: int = 0,
    stages: int = 0,
    fc: int = 1024,
    **_: object,
) -> Shapes:
    """All that a model's state holds, as Detectron2 names it."""
    shapes: Shapes = {}

    def normed(name: str, channels: int) -> None:
        kinds = (
            ("weight", "bias")
            if norm == "gn"
            else ("weight", "bias", "running_mean", "running_var")
        )
        for part in kinds:
            shapes[f"{name}.norm.{part}"] = (channels,)

    def layer(name: str, *shape: int, rows: int | None = None) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = (shape[0] if rows is None else rows,)

    trunk = "backbone.bottom_up" if kind == "fpn" else "backbone"
    shapes[f"{trunk}.stem.conv1.weight"] = (64, 3, 7, 7)
    normed(f"{trunk}.stem.conv1", 64)
    inp = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        out = 256 * 2 ** (stage - 2)
        width = int(out // 4 * per_group / 64) * groups
        prefix = "roi_heads" if kind == "c4" and stage == 5 else trunk
        for i in range(blocks):
            block = f"{prefix}.res{stage}.{i}"
            parts = [("conv1", width, inp, 1), ("conv2", width, width // groups, 3)]
            parts += [("conv3", out, width, 1)]
            parts += [("shortcut", out, inp, 1)] if i == 0 else []
            for name, o, n, k in parts:
                shapes[f"{block}.{name}.weight"] = (o, n, k, k)
                normed(f"{block}.{name}", o)
            inp = out
        if kind == "fpn":
            for name, channels, k in (("lateral", out, 1), ("output", 256, 3)):
                shapes[f"backbone.fpn_{name}{stage}.weight"] = (256, channels, k, k)
                if norm == "gn":
                    normed(f"backbone.fpn_{name}{stage}", 256)
                else:
                    shapes[f"backbone.fpn_{name}{stage}.bias"] = (256,)
    channels = {"fpn": 256, "c4": 1024, "dc5": 2048}[kind]
    anchors = 3 if kind == "fpn" else 15
    rpn = "proposal_generator.rpn_head"
    layer(f"{rpn}.conv", channels, channels, 3, 3)
    layer(f"{rpn}.objectness_logits", anchors, channels, 1, 1)
    layer(f"{rpn}.anchor_deltas", anchors * 4, channels, 1, 1)
    heads = [f".{k}" for k in range(stages)] or [""]
    for head in heads:
        hidden = 2048 if kind == "c4" else fc
        for i in range(1, convs + 1):
            shapes[f"roi_heads.box_head{head}.conv{i}.weight"] = (256, 256, 3, 3)
            normed(f"roi_heads.box_head{head}.conv{i}", 256)
        if kind != "c4":
            layer(f"roi_heads.box_head{head}.fc1", fc, channels * 49)
            if not convs:
                layer(f"roi_heads.box_head{head}.fc2", fc, fc)
        layer(f"roi_heads.box_predictor{head}.cls_score", num_classes + 1, hidden)
        rows = 4 if stages else 4 * num_classes
        layer(f"roi_heads.box_predictor{head}.bbox_pred", rows, hidden)
    mask_in = {"fpn": 256, "c4": 2048, "dc5": 2048}[kind]
    for i in range(1, 5 if kind != "c4" else 1):
        shapes[f"roi_heads.mask_head.mask_fcn{i}.weight"] = (256, mask_in if i == 1 else 256, 3, 3)
        if norm == "gn":
            normed(f"roi_heads.mask_head.mask_fcn{i}", 256)
        else:
            shapes[f"roi_heads.mask_head.mask_fcn{i}.bias"] = (256,)
    layer("roi_heads.mask_head.deconv", 2048 if kind == "c4" else 256, 256, 2, 2, rows=256)
    layer("roi_heads.mask_head.predictor", num_classes, 256, 1, 1)
    return shapes


def save(state: dict[str, Tensor], path: Path) -> None:
    """As Detectron2 saves: a zoo's pickle of arrays, or a training's checkpoint."""
    if path.suffix == ".pkl":
        arrays = {key: value.numpy() for key, value in state.items()}
        content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save({"model": state, "optimizer": {}, "iteration": 89999}, path)


@pytest.mark.parametrize(
    ("architecture", "suffix"),
    [*((name, ".pkl") for name in ARCHITECTURES), ("R50-FPN", ".pth"), ("R50-C4", ".pth")],
)
def test_every_key_is_loaded(architecture: str, suffix: str, tmp_path: Path) -> None:
    settings = ARCHITECTURES[architecture]
    shapes = keys_and_shapes(80, **settings)  # type: ignore[arg-type]
    # Values that say which tensor they are of, of type float16 to be quick.
    state = {
        key: torch.full(shape, number, dtype=torch.float16)
        for number, (key, shape) in enumerate(shapes.items())
    }
    extra = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    extra["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    save(state | extra, tmp_path / f"model{suffix}")
    name = str(settings["model"])
    backbone = settings.get("backbone", BACKBONES[name])
    model = build_model(f"model={name}", f"backbone={backbone}", class_names=COCO_80)
    report = load_detector(model, str(tmp_path / f"model{suffix}"))
    assert len(report.loaded) == len(shapes) and not report.replaced
    assert sorted(report.left_over) == sorted(extra)
    own = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    assert set(report.loaded) == set(own)
    numbers = [int(value.flatten()[0]) for value in own.values()]
    assert sorted(numbers) == list(range(len(shapes)))  # one-to-one


STATE_OF = {
    "R50-FPN": published("mask_rcnn_d2"),
    "R50-C4": published("mask_rcnn_d2_c4"),
    "R50-DC5": [*published("mask_rcnn_d2_dc5"), "model.box_head.trunk.hidden=32"],
    "R50-FPN-GN": published("mask_rcnn_d2_gn"),
    "R50-FPN-Cascade": published("cascade_mask_rcnn"),
}
NUM_CLASSES = 5
FEW = 60  # proposals
MOST = 30  # detections


@pytest.fixture(scope="module", params=STATE_OF)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, dict[str, Tensor], Detector]]:
    name = str(request.param)
    generator = torch.Generator().manual_seed(0)
    settings = ARCHITECTURES[name] | ({"fc": 32} if "DC5" in name else {})
    shapes = keys_and_shapes(NUM_CLASSES, **settings)  # type: ignore[arg-type]
    state = {}
    for key, shape in shapes.items():  # type: ignore[arg-type]
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) > 1:
            value *= (2 / math.prod(shape[1:])) ** 0.5
        elif key.endswith("running_var"):
            value = value.abs() * 0.3 + 0.7
        else:
            value = value * 0.1 + (0.6 if "norm.weight" in key else 0)
        value *= 0.1 if "anchor_deltas.weight" in key or "bbox_pred.weight" in key else 1
        state[key] = value
    trunk = "backbone.bottom_up" if "FPN" in name else "backbone"
    if "GN" not in name:
        state[f"{trunk}.stem.conv1.weight"] *= 0.02  # pixels are up to 255
    path = tmp_path_factory.mktemp("weights") / "model_final.pth"
    save(state, path)
    model = build_model(
        *STATE_OF[name],
        f"model.rpn.selector.num_proposals={FEW}",
        f"model.box_head.selector.num_detections={MOST}",
        class_names=[f"class {k}" for k in range(NUM_CLASSES)],
    ).double()
    load_detector(model, str(path))
    spread_classes(model.eval(), state)
    save(state, path)
    load_detector(model, str(path))
    yield name, state, model


@torch.no_grad()
def spread_classes(model: Detector, state: dict[str, Tensor]) -> None:
    """Scale and shift the scores so that every class is the best of some proposal."""
    batch = image_batch(64, 96, 32, torch.float64)
    features = model.features(batch)
    proposals = model.rpn.propose(model.rpn(features, (64, 96)), batch, training=False)
    boxes = proposals.boxes[0, proposals.valid[0]]
    pooled = model.box_head.roi_features.pooler(
        features, boxes, torch.zeros(len(boxes), dtype=torch.int64)
    )
    if model.box_head.roi_features.roi_stage is not None:
        pooled = model.box_head.roi_features.roi_stage(pooled)
    for stage, branch in enumerate(getattr(model.box_head, "branches", [None])):
        name = "" if branch is None else f".{stage}"
        logits = (branch or model.box_head.branch)(pooled, 1)[0][0].roll(-1, 1)  # background last
        layer, factor = f"roi_heads.box_predictor{name}.cls_score", 2 / logits.std(0)
        state[f"{layer}.weight"] *= factor[:, None]
        state[f"{layer}.bias"] = (state[f"{layer}.bias"] - logits.mean(0)) * factor


def reference(name: str, state: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    """Detectron2's inference on one image (3, H, W) RGB, with boxes in its pixels."""
    w, settings = state, ARCHITECTURES[name]
    kind, norm_kind = str(settings.get("kind", "fpn")), settings.get("norm", "bn")
    stages = int(settings.get("stages", 0))  # type: ignore[call-overload]
    height, width = image.shape[1:]
    mean = torch.tensor([103.53, 116.28, 123.675], dtype=torch.float64).view(3, 1, 1)
    x = (image.flip(0).double() - mean)[None]
    if kind == "fpn":
        x = F.pad(x, (0, -width % 32, 0, -height % 32))

    def norm(x: Tensor, name: str) -> Tensor:
        scale = (w[f"{name}.weight"], w[f"{name}.bias"])
        if norm_kind == "gn":
            return F.group_norm(x, 32, *scale)
        stats = (w[f"{name}.running_mean"], w[f"{name}.running_var"])
        return F.batch_norm(x, *stats, *scale, eps=1e-5)

    def conv(x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        pad = weight.shape[-1] // 2 * dilation
        x = F.conv2d(x, weight, w.get(f"{name}.bias"), stride, pad, dilation)
        return norm(x, f"{name}.norm") if f"{name}.norm.weight" in w else x

    def res(x: Tensor, name: str, blocks: int, stride: int, dilation: int = 1) -> Tensor:
        on_1x1 = norm_kind != "gn"
        for i in range(blocks):
            s = stride if i == 0 else 1
            y = F.relu(conv(x, f"{name}.{i}.conv1", s if on_1x1 else 1))
            y = F.relu(conv(y, f"{name}.{i}.conv2", 1 if on_1x1 else s, dilation))
            y = conv(y, f"{name}.{i}.conv3")
            x = F.relu(y + (conv(x, f"{name}.{i}.shortcut", s) if i == 0 else x))
        return x

    trunk = "backbone.bottom_up" if kind == "fpn" else "backbone"
    x = F.max_pool2d(F.relu(conv(x, f"{trunk}.stem.conv1", 2)), 3, 2, 1)
    c = {}
    for stage, blocks in enumerate(BLOCKS[50], start=2):
        if kind == "c4" and stage == 5:
            continue
        dilated = kind == "dc5" and stage == 5
        stride = 1 if stage == 2 or dilated else 2
        x = c[stage] = res(x, f"{trunk}.res{stage}", blocks, stride, 2 if dilated else 1)
    if kind == "fpn":
        top = conv(c[5], "backbone.fpn_lateral5")
        levels = [conv(top, "backbone.fpn_output5")]
        for stage in (4, 3, 2):
            top = conv(c[stage], f"backbone.fpn_lateral{stage}") + F.interpolate(
                top, scale_factor=2
            )
            levels.insert(0, conv(top, f"backbone.fpn_output{stage}"))
        levels.append(F.max_pool2d(levels[-1], 1, 2))
        strides, sizes = [4, 8, 16, 32, 64], [[32], [64], [128], [256], [512]]
    else:
        levels, strides, sizes = [x], [16], [[32, 64, 128, 256, 512]]

    limit = torch.tensor([width, height, width, height], dtype=torch.float64)

    def moved(boxes: Tensor, deltas: Tensor, weights: tuple[float, ...]) -> Tensor:
        sides = boxes[..., 2:] - boxes[..., :2]
        deltas = deltas / torch.tensor(weights, dtype=torch.float64)
        centers = boxes[..., :2] + 0.5 * sides + deltas[..., :2] * sides
        sides = deltas[..., 2:].clamp(max=math.log(1000 / 16)).exp() * sides
        return torch.cat([centers - 0.5 * sides, centers + 0.5 * sides], -1)

    boxes, scores, groups = [], [], []
    head = "proposal_generator.rpn_head"
    for number, (level, stride, level_sizes) in enumerate(zip(levels, strides, sizes, strict=True)):
        hidden = F.relu(conv(level, f"{head}.conv"))
        logits = conv(hidden, f"{head}.objectness_logits")[0].permute(1, 2, 0).flatten()
        deltas = conv(hidden, f"{head}.anchor_deltas")[0].permute(1, 2, 0).reshape(-1, 4)
        cells = []
        for size in level_sizes:
            for ratio in (0.5, 1.0, 2.0):
                wide = math.sqrt(size**2 / ratio)
                cells.append([-wide / 2, -ratio * wide / 2, wide / 2, ratio * wide / 2])
        y, x = torch.meshgrid(
            *(torch.arange(n, dtype=torch.float64) * stride for n in level.shape[2:]), indexing="ij"
        )
        shifts = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
        anchors = (shifts + torch.tensor(cells, dtype=torch.float64)).view(-1, 4)
        best, index = logits.topk(min(1000 if kind == "fpn" else 6000, len(logits)))
        boxes.append(moved(anchors[index], deltas[index], (1, 1, 1, 1)))
        scores.append(best)
        groups.append(torch.full_like(index, number))
    proposals = torch.minimum(torch.cat(boxes).clamp(min=0), limit)
    score, group = torch.cat(scores), torch.cat(groups)
    full = (proposals[:, 2:] > proposals[:, :2]).all(1)
    proposals, score, group = proposals[full], score[full], group[full]
    proposals = proposals[batched_nms(proposals, score, group, 0.7)[:FEW]]

    def pool(boxes: Tensor, size: int) -> Tensor:
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        which = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-8)).clamp(2, 5).long() - 2
        which = which if kind == "fpn" else which * 0
        pooled = torch.zeros(len(boxes), levels[0].shape[1], size, size, dtype=torch.float64)
        for number, stride in enumerate(strides[:4]):
            pooled[which == number] = roi_align(
                levels[number], [boxes[which == number]], size, 1 / stride, 0, aligned=True
            )
        return res(pooled, "roi_heads.res5", 3, 2) if kind == "c4" else pooled

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def predicted(boxes: Tensor, stage: str) -> tuple[Tensor, Tensor]:
        hidden = pool(boxes, 14 if kind == "c4" else 7)
        for i in range(1, int(settings.get("convs", 0)) + 1):  # type: ignore[call-overload]
            hidden = F.relu(conv(hidden, f"roi_heads.box_head{stage}.conv{i}"))
        hidden = hidden.mean((2, 3)) if kind == "c4" else hidden.flatten(1)
        for fc in ("fc1", "fc2"):
            if f"roi_heads.box_head{stage}.{fc}.weight" in w:
                hidden = F.relu(linear(hidden, f"roi_heads.box_head{stage}.{fc}"))
        scores = linear(hidden, f"roi_heads.box_predictor{stage}.cls_score").softmax(1)
        deltas = linear(hidden, f"roi_heads.box_predictor{stage}.bbox_pred")
        return scores, deltas.view(len(boxes), -1, 4)

    if stages:
        boxes_now, probabilities = proposals, torch.zeros(len(proposals), NUM_CLASSES + 1)
        for k in range(stages):
            weights = tuple((k + 1) * value for value in (10, 10, 5, 5))
            stage_scores, deltas = predicted(boxes_now, f".{k}")
            probabilities = probabilities + stage_scores / stages
            refined = moved(boxes_now[:, None], deltas, weights)
            boxes_now = torch.minimum(refined.clamp(min=0), limit)[:, 0]
        refined = boxes_now[:, None].expand(-1, NUM_CLASSES, -1)
    else:
        probabilities, deltas = predicted(proposals, "")
        refined = moved(proposals[:, None], deltas, (10, 10, 5, 5))
        refined = torch.minimum(refined.clamp(min=0), limit)
    rois, labels = torch.nonzero(probabilities[:, :-1] > 0.05, as_tuple=True)  # background last
    boxes_kept, scores_kept = refined[rois, labels], probabilities[rois, labels]
    kept = batched_nms(boxes_kept, scores_kept, labels, 0.5)[:MOST]
    found, labels = boxes_kept[kept], labels[kept]

    hidden = pool(found, 14)
    for i in range(1, 5):
        if kind != "c4":
            hidden = F.relu(conv(hidden, f"roi_heads.mask_head.mask_fcn{i}"))
    deconv = "roi_heads.mask_head.deconv"
    hidden = F.conv_transpose2d(hidden, w[f"{deconv}.weight"], w[f"{deconv}.bias"], stride=2)
    masks = conv(F.relu(hidden), "roi_heads.mask_head.predictor").sigmoid()
    return {
        "proposals": proposals,
        "boxes": found,
        "scores": scores_kept[kept],
        "labels": labels + 1,
        "masks": masks[torch.arange(len(found)), labels],
    }


def image_batch(height: int, width: int, multiple: int, dtype: torch.dtype) -> Batch:
    batch = make_batch([(height, width)], [[]], [[]], dtype=dtype)
    if multiple == 1:
        batch.images = batch.images[:, :, :height, :width]
    return batch


@pytest.mark.parametrize(("height", "width"), [(60, 88), (64, 65)])
def test_inference_is_detectron2s(
    case: tuple[str, dict[str, Tensor], Detector], height: int, width: int
) -> None:
    name, state, model = case
    batch = image_batch(height, width, 32 if "FPN" in name else 1, torch.float64)
    with torch.no_grad():
        expected = reference(name, state, batch.images[0, :, :height, :width])
        features = model.features(batch)
        output = model.rpn(features, tuple(batch.images.shape[2:]))
        proposals = model.rpn.propose(output, batch, training=False)
    assert proposals.valid.sum() == len(expected["proposals"]) >= 40
    there = proposals.boxes[0, proposals.valid[0]]
    assert (there - expected["proposals"]).abs().max() < 1e-9
    found = model.predict(batch)
    num = len(expected["labels"])
    assert num >= 10 and (found.labels > 0).sum() == num
    assert torch.equal(found.labels[0, :num], expected["labels"])
    assert len(expected["labels"].unique()) > 1
    for kind, ours in (("boxes", found.boxes), ("scores", found.scores), ("masks", found.masks)):
        assert ours is not None
        assert (ours[0, :num] - expected[kind]).abs().max() < 1e-8, kind


def test_float32_is_the_same_as_a_set(case: tuple[str, dict[str, Tensor], Detector]) -> None:
    """Boxes within 1e-2 pixels and scores within 1e-4, less what a near-tie exchanges."""
    name, state, model = case
    batch = image_batch(64, 96, 32, torch.float32)
    with torch.no_grad():
        expected = reference(name, state, batch.images[0])
    found = model.float().predict(batch)
    model.double()
    there = found.labels[0] > 0
    near = (found.boxes[0, there, None] - expected["boxes"]).abs().amax(-1) < 1e-2
    near &= (found.scores[0, there, None] - expected["scores"]).abs() < 1e-4
    near &= found.labels[0, there, None] == expected["labels"]
    print(name, int(near.any(0).sum()), "of", len(expected["labels"]), "matched")
    assert near.any(0).sum() >= len(expected["labels"]) - 2 and near.any(1).sum() >= there.sum() - 2
    assert found.masks is not None
    pairs = torch.nonzero(near & (near.cumsum(1) == 1))
    ours, theirs = found.masks[0, there][pairs[:, 0]], expected["masks"][pairs[:, 1]]
    assert (ours - theirs).abs().max() < 1e-3


def test_imagenet_files_of_caffe2(tmp_path: Path) -> None:
    """R-50.pkl's names, with batch norm folded into a scale and a shift or not."""
    branches = {"conv1": "2a", "conv2": "2b", "conv3": "2c"}
    peer = torchvision.models.resnet50()
    arrays: dict[str, np.ndarray] = {}
    for key, value in peer.state_dict().items():
        if "num_batches" in key or key.startswith("fc."):
            continue
        parts = key.split(".")
        kind = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}[parts[-1]]
        if key.startswith(("conv1", "bn1")):
            name = "conv1_w" if key.startswith("conv1") else f"res_conv1_bn_{kind}"
        else:
            stage, block = int(parts[0][-1]) + 1, parts[1]
            is_norm = parts[2].startswith("bn") or parts[2:4] == ["downsample", "1"]
            branch = "1" if parts[2] == "downsample" else branches[f"conv{parts[2][-1]}"]
            name = f"res{stage}_{block}_branch{branch}_{f'bn_{kind}' if is_norm else 'w'}"
        arrays[name] = value.numpy()
    arrays["conv1_b"] = np.zeros(64)  # which Detectron2 leaves out
    arrays |= {"fc1000_w": np.zeros((1000, 2048)), "fc1000_b": np.zeros(1000)}
    folded = {key: value for key, value in arrays.items() if not key.endswith(("_rm", "_riv"))}
    for name, content in (("R-50", {"blobs": arrays}), ("folded", folded)):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content, protocol=2))
        file = str(tmp_path / f"{name}.pkl")
        backbone = build(50, norm="frozen_bn", form="caffe", weights=file)
        body, report = backbone.body, load_backbone(backbone)
        assert sorted(report.left_over) == ["conv1_b", "fc1000_b", "fc1000_w"]
        state = peer.state_dict()
        assert all(
            torch.equal(value, state[key])
            for key, value in body.state_dict().items()
            if name == "R-50" or "running" not in key
        )
        if name == "folded":
            assert (body.layer1[0].bn1.running_var == 1).all()
            assert not body.layer1[0].bn1.running_mean.any()
    arrays["surprise_w"] = np.zeros(3)
    (tmp_path / "odd.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    with pytest.raises(ValueError, match=r"not of this architecture: 1 left over \(surprise_w\)"):
        build(50, norm="frozen_bn", form="caffe", weights=str(tmp_path / "odd.pkl"))
