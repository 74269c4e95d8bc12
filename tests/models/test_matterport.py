"""Matterport's forward pass, written here from the table alone, against the preset's.

`reference` knows nothing of our code: it reads a checkpoint under the port's own keys, with boxes
(y1, x1, y2, x2) in parts of the canvas and deltas (dy, dx, dh, dw).
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from mrcnn_lightning.app.run import CONF
from mrcnn_lightning.data.dataset import collate
from mrcnn_lightning.data.sizing import CentredSquare
from mrcnn_lightning.data.transforms import ImageTargets, Sample
from mrcnn_lightning.models.backbones.resnets import SameMaxPool
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.ops.sampling import image_seed
from mrcnn_lightning.structures import Batch, map_tensors
from mrcnn_lightning.weights import matterport
from mrcnn_lightning.weights.load import load_detector
from mrcnn_lightning.weights.renaming import translate
from mrcnn_lightning.weights.torchvision import COCO_80
from tests.conftest import build_model, compose, make_batch, published

State = dict[str, Tensor]
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NUM_CLASSES = 5
MEAN = torch.tensor([123.7, 116.8, 103.9], dtype=torch.float64).view(3, 1, 1)
STD = torch.tensor([0.1, 0.1, 0.2, 0.2], dtype=torch.float64)


def keys_and_shapes(depth: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """All that a checkpoint of the port holds."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inp: int, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inp, size, size), (out,)

    def norm(name: str, channels: int) -> None:
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{kind}"] = (channels,)

    conv("fpn.C1.0", 64, 3, 7)
    norm("fpn.C1.1", 64)
    inp = 64
    for stage, blocks in enumerate(BLOCKS[depth], start=2):
        width = 64 * 2 ** (stage - 2)
        for i in range(blocks):
            block = f"fpn.C{stage}.{i}"
            for j, (o, n, k) in enumerate(
                [(width, inp, 1), (width, width, 3), (4 * width, width, 1)]
            ):
                conv(f"{block}.conv{j + 1}", o, n, k)
                norm(f"{block}.bn{j + 1}", o)
            if i == 0:
                conv(f"{block}.downsample.0", 4 * width, inp, 1)
                norm(f"{block}.downsample.1", 4 * width)
            inp = 4 * width
        conv(f"fpn.P{stage}_conv1", 256, inp, 1)
        conv(f"fpn.P{stage}_conv2.1", 256, 256, 3)
    conv("rpn.conv_shared", 512, 256, 3)
    conv("rpn.conv_class", 6, 512, 1)
    conv("rpn.conv_bbox", 12, 512, 1)
    conv("classifier.conv1", 1024, 256, 7)
    norm("classifier.bn1", 1024)
    conv("classifier.conv2", 1024, 1024, 1)
    norm("classifier.bn2", 1024)
    for name, rows in (("class", num_classes + 1), ("bbox", 4 * (num_classes + 1))):
        shapes[f"classifier.linear_{name}.weight"] = (rows, 1024)
        shapes[f"classifier.linear_{name}.bias"] = (rows,)
    for i in range(1, 5):
        conv(f"mask.conv{i}", 256, 256, 3)
        norm(f"mask.bn{i}", 256)
    conv("mask.deconv", 256, 256, 2)
    conv("mask.conv5", num_classes + 1, 256, 1)
    return shapes


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights, of a size that leaves features neither vanishing nor exploding."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in keys_and_shapes(50, NUM_CLASSES).items():
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) > 1:
            value *= (2 / (shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1))) ** 0.5
        elif key.endswith("running_var"):
            value = value.abs() * 0.3 + 0.7
        else:
            value = value * 0.1 + (0.6 if key.endswith("weight") else 0)
        state[key] = value
    state["fpn.C1.0.weight"] *= 0.02  # pixels are up to 255
    for name, size in (
        ("rpn.conv_class", 0.2),
        ("rpn.conv_bbox", 0.1),
        ("classifier.linear_bbox", 0.2),
    ):
        state[f"{name}.weight"] *= size
    return state


@pytest.fixture(scope="module")
def model(state: State, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    path = tmp_path_factory.mktemp("weights") / "mask_rcnn_coco.pth"
    torch.save(state, path)
    model = build_model(
        *published("matterport"),
        "backbone.depth=50",
        class_names=[f"class {k}" for k in range(NUM_CLASSES)],
    ).double()
    load_detector(model, str(path))
    return model.eval()


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def reference(state: State, canvas: Tensor, window: tuple[int, int, int, int]) -> dict[str, Tensor]:
    """The table's forward pass of one square canvas (1, 3, N, N), already less the mean."""
    w, num = state, canvas.shape[-1]

    def conv(x: Tensor, name: str, stride: int = 1, pad: int | None = None) -> Tensor:
        weight = w[f"{name}.weight"]
        k = weight.shape[-1]
        sides = same(x.shape[3], k, stride) + same(x.shape[2], k, stride)
        x = F.pad(x, sides if pad is None else [pad] * 4)
        return F.conv2d(x, weight, w[f"{name}.bias"], stride)

    def norm(x: Tensor, name: str) -> Tensor:
        stats = (w[f"{name}.running_mean"], w[f"{name}.running_var"])
        return F.batch_norm(x, *stats, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-3)

    x = F.relu(norm(conv(canvas, "fpn.C1.0", 2, pad=3), "fpn.C1.1"))
    x = F.max_pool2d(F.pad(x, same(x.shape[3], 3, 2) + same(x.shape[2], 3, 2)), 3, 2)
    c = {}
    for stage, blocks in enumerate(BLOCKS[50], start=2):
        for i in range(blocks):
            name, stride = f"fpn.C{stage}.{i}", 2 if stage > 2 and i == 0 else 1
            y = F.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
            y = F.relu(norm(conv(y, f"{name}.conv2"), f"{name}.bn2"))
            y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
            if i == 0:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = F.relu(x + y)
        c[stage] = x
    p = {5: conv(c[5], "fpn.P5_conv1")}
    for level in (4, 3, 2):
        p[level] = conv(c[level], f"fpn.P{level}_conv1") + F.interpolate(
            p[level + 1], scale_factor=2
        )
    p = {level: conv(p[level], f"fpn.P{level}_conv2.1") for level in (2, 3, 4, 5)}
    p[6] = p[5][:, :, ::2, ::2]

    scores, deltas, anchors = [], [], []
    for level in range(2, 7):
        hidden = F.relu(conv(p[level], "rpn.conv_shared"))
        logits = conv(hidden, "rpn.conv_class").permute(0, 2, 3, 1).reshape(-1, 2)
        scores.append(logits.softmax(1)[:, 1])
        deltas.append(conv(hidden, "rpn.conv_bbox").permute(0, 2, 3, 1).reshape(-1, 4))
        for row in range(hidden.shape[2]):
            for column in range(hidden.shape[3]):
                for ratio in (0.5, 1, 2):
                    wide, high = 8 * 2**level * ratio**0.5, 8 * 2**level / ratio**0.5
                    y, x_ = row * 2**level, column * 2**level
                    anchors.append([y - high / 2, x_ - wide / 2, y + high / 2, x_ + wide / 2])

    def moved(boxes: Tensor, by: Tensor) -> Tensor:
        sides = boxes[:, 2:] - boxes[:, :2]
        centers = boxes[:, :2] + sides / 2 + by[:, :2] * sides
        sides = sides * by[:, 2:].exp()
        return torch.cat([centers - sides / 2, centers + sides / 2], 1)

    score, order = torch.cat(scores).sort(descending=True)
    order = order[:6000]
    boxes = moved(torch.tensor(anchors, dtype=torch.float64)[order], torch.cat(deltas)[order] * STD)
    boxes = boxes.clamp(0, num)
    kept = torchvision.ops.nms(boxes, score[:6000], 0.7)[:1000]
    rois = boxes[kept] / num

    def crop(rois: Tensor, size: int) -> Tensor:
        sides = (rois[:, 2:] - rois[:, :2]) * num
        levels = (4 + (sides.prod(1).sqrt() / 224).log2()).round().clamp(2, 5)
        cut = []
        for roi, level in zip(rois, levels.int().tolist(), strict=True):
            y, x = (
                roi[i] + torch.arange(size) * (roi[i + 2] - roi[i]) / (size - 1) for i in (0, 1)
            )
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1) * 2 - 1
            # A border that rounding puts a hair outside is inside.
            inside = (grid.abs() <= 1 + 1e-12).all(-1)
            cut.append(F.grid_sample(p[level], grid[None], align_corners=True)[0] * inside)
        return torch.stack(cut)

    x = F.conv2d(crop(rois, 7), w["classifier.conv1.weight"], w["classifier.conv1.bias"])
    x = F.relu(norm(x, "classifier.bn1"))
    x = F.relu(norm(conv(x, "classifier.conv2"), "classifier.bn2")).flatten(1)
    linear = {
        name: F.linear(
            x, w[f"classifier.linear_{name}.weight"], w[f"classifier.linear_{name}.bias"]
        )
        for name in ("class", "bbox")
    }
    probabilities, box_deltas = linear["class"].softmax(1), linear["bbox"].view(len(x), -1, 4)

    best, label = probabilities.max(1)
    refined = moved(rois * num, box_deltas[torch.arange(len(x)), label] * STD)
    y1, x1, y2, x2 = window
    low, high = torch.tensor([y1, x1, y1, x1]), torch.tensor([y2, x2, y2, x2])
    refined = torch.minimum(torch.maximum(refined, low), high).round()
    found = []
    for k in range(1, NUM_CLASSES + 1):
        index = torch.nonzero(label == k)[:, 0]
        found.append(index[torchvision.ops.nms(refined[index], best[index], 0.3)])
    index = torch.cat(found)
    index = index[best[index].argsort(descending=True)][:100]

    x = crop(refined[index] / num, 14)
    for i in range(1, 5):
        x = F.relu(norm(conv(x, f"mask.conv{i}"), f"mask.bn{i}"))
    x = F.relu(F.conv_transpose2d(x, w["mask.deconv.weight"], w["mask.deconv.bias"], stride=2))
    masks = conv(x, "mask.conv5").sigmoid()[torch.arange(len(index)), label[index]]
    return {
        "rois": rois * num,
        "probabilities": probabilities,
        "deltas": box_deltas,
        "boxes": refined[index],
        "scores": best[index],
        "labels": label[index],
        "masks": masks,
    }


def image_batch(height: int, width: int, side: int) -> Batch:
    generator = torch.Generator().manual_seed(height)
    sample = Sample(
        image=torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
        image_id=1,
        seed=0,
        original_size=(height, width),
        targets=ImageTargets(
            boxes=torch.empty(0, 4),
            labels=torch.empty(0, dtype=torch.int64),
            crowd=torch.empty(0, dtype=torch.bool),
            masks=None,
            mask_frames=None,
        ),
    )
    batch = collate([sample], canvas=CentredSquare(side=side))
    batch.windows = batch.windows.double()
    return batch


@pytest.mark.parametrize(("height", "width", "side"), [(100, 128, 128), (192, 151, 192)])
def test_forward_pass_is_the_references(
    state: State, model: Detector, height: int, width: int, side: int
) -> None:
    batch = image_batch(height, width, side)
    top, left = (side - height) // 2, (side - width) // 2
    canvas = torch.zeros(1, 3, side, side, dtype=torch.float64)
    canvas[0, :, top : top + height, left : left + width] = batch.images[
        0, :, top : top + height, left : left + width
    ].double()
    expected = reference(state, canvas - MEAN, (top, left, top + height, left + width))
    y_first = [1, 0, 3, 2]

    with torch.no_grad():
        features = model.features(batch)
        output = model.rpn(features, (side, side))
        proposals = model.rpn.propose(output, batch, training=False)
        assert proposals.valid.sum() == len(expected["rois"]) > 100
        rois = proposals.boxes[0, proposals.valid[0]]
        assert (rois[:, y_first] - expected["rois"]).abs().max() < 1e-9
        logits, deltas = model.box_head(features, rois[None])
        assert (logits[0].softmax(-1) - expected["probabilities"]).abs().max() < 1e-9
        assert (deltas[0][..., y_first] - expected["deltas"][:, 1:]).abs().max() < 1e-9
        assert expected["deltas"].std() > 0.1 and expected["probabilities"].std() > 0.05

    found = model.predict(batch)
    num = len(expected["labels"])
    assert num > 20 and len(expected["labels"].unique()) > 1
    assert (found.labels[0] > 0).sum() == num
    assert torch.equal(found.labels[0, :num], expected["labels"])
    assert torch.equal(found.boxes[0, :num][:, y_first], expected["boxes"])
    assert (found.scores[0, :num] - expected["scores"]).abs().max() < 1e-9
    assert found.masks is not None
    assert (found.masks[0, :num] - expected["masks"]).abs().max() < 1e-9
    assert expected["masks"].std() > 0.05


@pytest.mark.parametrize("depth", [50, 101])
def test_key_map_is_complete_and_one_to_one(depth: int) -> None:
    shapes = keys_and_shapes(depth, 80)
    state = {key: torch.empty(0) for key in shapes}
    translated = translate(state, matterport.DETECTOR)
    assert not translated.unknown and not translated.left_over
    assert len(translated.state) == len(shapes)
    model = build_model(
        *published("matterport"), f"backbone.depth={depth}", class_names=[str(k) for k in range(80)]
    )
    assert set(translated.state) == set(model.state_dict())
    for key, value in translate(
        {k: torch.empty(s, device="meta") for k, s in shapes.items()}, matterport.DETECTOR
    ).state.items():
        shape = list(value.shape)
        if key.startswith(("box_head.branch.deltas", "mask_head.classifier")):
            shape[0] = shape[0] // 81 * 80  # the background's is dropped on loading
        assert shape == list(model.state_dict()[key].shape), key


def test_a_file_of_eighty_other_classes_has_the_models(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port's files do not name their classes: they are COCO's where names agree."""
    slim = [
        *published("matterport"),
        "backbone.depth=50",
        "backbone.width=8",
        "model.neck.out_channels=8",
        "model.rpn.hidden=8",
        "model.box_head.trunk.hidden=8",
    ]

    def model(class_names: list[str]) -> Detector:
        return build_model(*slim, class_names=class_names)

    keys = list(keys_and_shapes(50, 80))
    places = translate(
        {key: torch.tensor(n) for n, key in enumerate(keys)}, matterport.DETECTOR
    ).state
    own = model([f"part {number}" for number in range(80)])
    theirs = {keys[int(places[key])]: value for key, value in own.state_dict().items()}
    theirs["classifier.linear_class.bias"] = torch.arange(81.0)
    torch.save(theirs, tmp_path / "mask_rcnn_0160.pth")
    bias = "box_head.branch.classifier.bias"

    assert not load_detector(own, str(tmp_path / "mask_rcnn_0160.pth")).replaced
    assert own.state_dict()[bias].tolist() == list(range(81))
    assert "does not name its 80 classes: they are taken for the model's" in caplog.text
    caplog.clear()
    zebra = model(["zebra", "person"])
    load_detector(zebra, str(tmp_path / "mask_rcnn_0160.pth"))
    assert zebra.state_dict()[bias].tolist() == [0, 1 + COCO_80.index("zebra"), 1]
    fewer = model(own.class_names[:79])
    assert len(load_detector(fewer, str(tmp_path / "mask_rcnn_0160.pth")).replaced) == 6
    # What was published is COCO's, whatever the model's classes are called.
    monkeypatch.setattr("mrcnn_lightning.weights.load.read_weights", lambda *_, **__: theirs)
    assert len(load_detector(own, "https://example.org/mask_rcnn_coco.pth").replaced) == 6
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_input(model: Detector) -> None:
    data = compose("experiment=matterport").data
    assert data.resize.rule._target_.endswith("sizing.enlarged")
    assert (data.resize.min_size, data.resize.max_size) == (800, 1024)
    assert (data.canvas.side, data.mini_mask_size, data.max_objects) == (1024, 56, 100)
    assert data.skip_empty and data.boxes_from == "pixels"
    batch = image_batch(60, 128, 128)
    assert batch.windows.tolist() == [[0, 34, 128, 94]]
    normalized = model.normalize(batch)
    assert (normalized[0, :, 34:94] - batch.images[0, :, 34:94] + MEAN).abs().max() < 1e-12
    padding = torch.cat([normalized[0, :, :34], normalized[0, :, 94:]], dim=1)
    assert (padding + MEAN).abs().max() < 1e-12


def test_same_padding() -> None:
    feature = torch.randn(1, 2, 11, 16).relu()
    pooled = SameMaxPool(3, 2)(feature)
    assert pooled.shape == (1, 2, 6, 8)
    padded = F.pad(feature, (0, 1, 1, 1))  # 16 wants one more, 11 wants two
    assert torch.equal(pooled, F.max_pool2d(padded, 3, 2))


def test_backbone_and_neck(model: Detector) -> None:
    from torchvision.models.resnet import Bottleneck

    convs = [layer for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convs) > 60 and all(conv.bias is not None for conv in convs)
    for layer in model.modules():
        if "BatchNorm" in type(layer).__name__:
            assert isinstance(layer, torchvision.ops.FrozenBatchNorm2d) and layer.eps == 1e-3
    for number in range(1, 5):
        block = model.backbone.body.get_submodule(f"layer{number}")[0]
        assert isinstance(block, Bottleneck)
        assert block.conv1.stride[0] == (1 if number == 1 else 2) and block.conv2.stride == (1, 1)
    assert model.backbone.body.conv1.padding == (3, 3)
    cfg = compose("experiment=matterport")
    assert cfg.backbone.depth == 101
    features = model.features(image_batch(128, 128, 128))
    assert [tuple(level.shape[1:]) for level in features] == [
        (256, side, side) for side in (32, 16, 8, 4, 2)
    ]
    assert torch.equal(features[4], features[3][:, :, ::2, ::2])
    assert model.neck.roi_strides == [4, 8, 16, 32] and model.neck.strides[-1] == 64


def test_anchors_and_rpn_head(model: Detector) -> None:
    assert model.rpn.convs[0].out_channels == 512
    assert (model.rpn.objectness.out_channels, model.rpn.deltas.out_channels) == (6, 12)
    features = model.features(image_batch(128, 128, 128))
    anchors = model.rpn.anchors(features, model.rpn.strides, (128, 128))
    assert len(anchors) == 3 * sum(side**2 for side in (32, 16, 8, 4, 2))
    sides = anchors[:3, 2:] - anchors[:3, :2]
    roots = torch.tensor([0.5, 1, 2]).double().sqrt()
    torch.testing.assert_close(sides, torch.stack([32 * roots, 32 / roots], dim=1))
    centers = (anchors[:, 2:] + anchors[:, :2]) / 2
    assert centers[0].tolist() == [0, 0] and centers[3].tolist() == [4, 0]
    assert centers[-1].tolist() == [64, 64]


def crowd_batch() -> Batch:
    boxes = [[[10.0, 12, 74, 92], [50, 30, 120, 90], [0, 96, 128, 128]]]
    batch = make_batch([(128, 128)], boxes, [[1, 3, 2]], dtype=torch.float64)
    assert batch.targets is not None
    batch.targets.crowd[0, 2] = True
    return batch


def test_rpn_targets(model: Detector) -> None:
    batch = crowd_batch()
    assert batch.targets is not None
    targets, sampler = batch.targets, model.rpn.sampler
    features = model.features(batch)
    anchors = model.rpn.anchors(features, model.rpn.strides, (128, 128))
    matched, label = sampler.label(anchors, targets, batch.windows)
    ious = torchvision.ops.box_iou(targets.boxes[0], anchors)
    real, crowd = ious[:2], ious[2]
    expected = torch.full((len(anchors),), -1)
    expected[(real.amax(0) < 0.3) & (crowd < 0.001)] = 0
    expected[real.argmax(1)] = 1
    expected[real.amax(0) >= 0.7] = 1
    assert torch.equal(label[0], expected)
    assert torch.equal(matched[0, expected == 1], real.argmax(0)[expected == 1])
    assert ((real.amax(0) < 0.3) & (crowd >= 0.001)).sum() > 20
    for seed in range(20):
        batch.seeds = torch.tensor([image_seed(0, seed, 1)])
        sampled, _ = sampler(anchors, targets, batch.windows, batch.seeds)
        assert sampled.valid.sum() == 256 and sampled.positive.sum() <= 128
        assert (expected[sampled.indices[0]] == sampled.positive[0].long()).all()
    assert list(model.rpn.delta_weights) == [10, 10, 5, 5]


def test_proposals(model: Detector) -> None:
    selector = model.rpn.selector
    assert selector.pre_nms_topk == selector.pre_nms_topk_in_training == 6000
    assert (selector.num_proposals, selector.num_proposals_in_training) == (1000, 2000)
    assert selector.nms_iou == 0.7 and selector.across_levels and selector.clip_to_canvas
    batch = image_batch(60, 128, 128)
    with torch.no_grad():
        proposals = model.rpn.propose(
            model.rpn(model.features(batch), (128, 128)), batch, training=True
        )
    boxes = proposals.boxes[proposals.valid]
    assert boxes[:, 1].min() < 34 and boxes.min() >= 0 and boxes.max() <= 128


def test_roi_targets_over_seeds(model: Detector) -> None:
    batch = crowd_batch()
    assert batch.targets is not None
    targets, sampler = batch.targets, model.roi_sampler
    with torch.no_grad():
        output = model.rpn(model.features(batch), (128, 128))
        proposals = model.rpn.propose(output, batch, training=True)
    generator = torch.Generator().manual_seed(1)
    for seed in range(30):
        batch.seeds = torch.tensor([image_seed(0, seed, 1)])
        few = seed % 3  # proposals near objects: none, some, more than a third of 200
        moved = proposals.boxes.clone()
        near = (0, 20, 150)[few]
        jitter = torch.randn(near, 4, generator=generator, dtype=torch.float64) * 4
        moved[0, :near] = targets.boxes[0, torch.arange(near) % 2] + jitter
        ious = torchvision.ops.box_iou(targets.boxes[0], moved[0])
        positive = (ious[:2].amax(0) >= 0.5) & proposals.valid[0]
        negative = (ious[:2].amax(0) < 0.5) & (ious[2] < 0.001) & proposals.valid[0]
        rois = sampler(proposals._replace(boxes=moved), targets, batch.seeds)
        num = int((rois.labels > 0).sum())
        assert num == min(66, int(positive.sum()))
        background = int((rois.valid & (rois.labels == 0)).sum())
        assert background == min(int(num / 0.33 - num), int(negative.sum()))
        used = rois.boxes[0, rois.valid[0]]
        if len(used):  # the others repeat them, so that batch norms see nothing else
            assert torch.equal(rois.boxes[0], used[torch.arange(200) % len(used)])
        kept = rois.boxes[0, rois.valid[0] & (rois.labels[0] == 0)]
        assert (torchvision.ops.box_iou(targets.boxes[0], kept)[2] < 0.001).all()
        if near == 150:
            assert num == 66 and background == 134
    nothing = moved * 0 + torch.tensor([0.0, 0, 3, 3], dtype=torch.float64)
    rois = sampler(proposals._replace(boxes=nothing), targets, batch.seeds)
    assert not rois.valid.any()
    assert list(model.box_head.branch.delta_weights) == [10, 10, 5, 5]


def test_losses_are_the_tables(model: Detector) -> None:
    """Each loss from what was sampled, by torch's own functions."""
    batch = crowd_batch()
    assert batch.targets is not None and model.mask_head is not None
    targets = batch.targets
    with torch.no_grad():
        losses = model.loss(batch)
        features = model.features(batch)
        output = model.rpn(features, (128, 128))
        sampled, objects = model.rpn.sampler(output.anchors, targets, batch.windows, batch.seeds)
        hidden = [F.relu(model.rpn.convs[0](level)) for level in features]
        logits = torch.cat(
            [model.rpn.objectness(h).permute(0, 2, 3, 1).reshape(-1, 2) for h in hidden]
        )
        index, positive = sampled.indices[0], sampled.positive[0]
        expected = F.cross_entropy(logits[index], positive.long())
        assert abs(losses["loss_objectness"] - expected) < 1e-9

        def deltas(boxes: Tensor, anchors: Tensor) -> Tensor:
            sides, anchor_sides = (b[:, 2:] - b[:, :2] for b in (boxes, anchors))
            shift = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2
            return torch.cat([shift / anchor_sides, (sides / anchor_sides).log()], 1) / STD

        chosen = index[positive]
        wanted = deltas(targets.boxes[0, objects[0, positive]], output.anchors[chosen])
        expected = F.smooth_l1_loss(output.deltas[0, chosen], wanted)
        assert abs(losses["loss_rpn_box_reg"] / expected - 1) < 1e-9

        proposals = model.rpn.propose(output, batch, training=True)
        rois = model.roi_sampler(proposals, targets, batch.seeds)
        assert (rois.labels > 0).sum() > 2
        logits, found = model.box_head(features, rois.boxes)
        expected = F.cross_entropy(logits[rois.valid], rois.labels[rois.valid])
        assert abs(losses["loss_classifier"] - expected) < 1e-9
        positive = rois.labels[0] > 0
        labels, boxes = rois.labels[0, positive], rois.boxes[0, positive]
        wanted = deltas(targets.boxes[0, rois.matched_gt[0, positive]], boxes)
        expected = F.smooth_l1_loss(found[0, positive][range(len(labels)), labels - 1], wanted)
        assert abs(losses["loss_box_reg"] / expected - 1) < 1e-9
        logits = model.mask_head(features, boxes, torch.zeros(len(boxes)).long(), labels)
        assert logits.shape[1:] == (28, 28) and targets.masks is not None
        number = rois.matched_gt[0, positive]
        assert targets.mask_frames is not None
        masks = model.mask_head.targets(
            targets.masks[0, number], targets.mask_frames[0, number], boxes, 28
        )
        assert set(masks.unique().tolist()) == {0, 1}
        expected = F.binary_cross_entropy_with_logits(logits, masks)
        assert abs(losses["loss_mask"] - expected) < 1e-9


def test_a_step_is_that_of_the_mean_and_the_ports_is_one_of_the_sum(
    model: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.roi_sampler, "num_rois", 20)
    names = ["rpn.deltas.bias", "box_head.branch.classifier.bias", "mask_head.classifier.bias"]
    parameters = [model.get_parameter(name) for name in names]
    once = crowd_batch()
    twice = map_tensors(once, lambda tensor: torch.cat([tensor, tensor]))
    with torch.no_grad():
        features = model.features(once)
    losses = [
        model.loss(once, features),
        model.loss(twice, [torch.cat([level, level]) for level in features]),
    ]
    gradients = [
        torch.autograd.grad(torch.stack(list(parts.values())).sum(), parameters) for parts in losses
    ]
    for one, two in zip(*gradients, strict=True):
        assert one.any()
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)

    # The port's loop over 16 images, and the settings that sgd_matterport.yaml names.
    text = (CONF / "optimizer" / "sgd_matterport.yaml").read_text()
    settings = [
        float(re.search(rf"{key}=([\d.e-]+\d)", text)[1])  # type: ignore[index]
        for key in ("optimizer.lr", "optimizer.weight_decay", "trainer.gradient_clip_val")
    ]
    ends = []
    for (lr, decay, clip), mean in (((0.001, 1e-4, 5.0), 1), (settings, 16)):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 40).double())
        sgd = torch.optim.SGD([weight], lr=lr, momentum=0.9, weight_decay=decay)
        for step in range(5):
            images = torch.randn(16, 40, generator=torch.Generator().manual_seed(step)).double()
            ((images * weight).sum() / mean).backward()
            torch.nn.utils.clip_grad_norm_([weight], clip)
            sgd.step()
            sgd.zero_grad()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-7)  # clipping adds 1e-6 to the norm


def test_heads_and_detections(model: Detector) -> None:
    branch, mask_head = model.box_head.branch, model.mask_head
    assert mask_head is not None
    assert branch.classifier.out_features == NUM_CLASSES + 1
    assert branch.deltas.out_features == 4 * NUM_CLASSES
    assert mask_head.classifier.out_channels == NUM_CLASSES
    selector = model.box_head.selector
    assert (selector.min_score, selector.nms_iou, selector.num_detections) == (0, 0.3, 100)
    assert compose("experiment=matterport").callbacks.pictures.min_score == 0.7


def test_training(tmp_path: Path) -> None:
    cfg = compose("experiment=matterport")
    assert (cfg.optimizer.lr, cfg.optimizer.momentum, cfg.optimizer.weight_decay) == (
        0.001,
        0.9,
        0.0001,
    )
    assert cfg.trainer.gradient_clip_val == 5 and cfg.task.decay_biases
    assert cfg.trainer.limit_train_batches == 1000
    phases: list[Any] = list(cfg.phases)
    assert [phase.backbone.trainable_stages for phase in phases] == [0, 2, 5]
    assert [phase.trainer.max_epochs for phase in phases] == [40, 80, 40]
    assert phases[2].optimizer.lr == 0.0001
    flips = [t for t in cfg.data.train_transforms if t._target_.endswith("RandomHorizontalFlip")]
    assert len(flips) == 1 and len(cfg.data.train_transforms) == 2
