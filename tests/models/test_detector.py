import copy
import shutil
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from torch.utils._python_dispatch import TorchDispatchMode

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.models.rpn import proposals
from mrcnn_lightning.ops import matching
from mrcnn_lightning.structures import Batch, Detections
from mrcnn_lightning.user_error import UserError
from tests.conftest import build_model, make_batch

LOSSES = ["loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"]
SMALL = [
    "experiment=shapes",
    "backbone.width=16",
    "model.neck.out_channels=32",
    "model.box_head.trunk.hidden=64",
]


@pytest.fixture
def model() -> Detector:
    torch.manual_seed(0)
    model = build_model(*SMALL, "model.box_head.selector.min_score=0.01")
    torch.nn.init.normal_(model.box_head.branch.classifier.weight, std=0.1)
    return model


def one_image(seed: int = 0, size: tuple[int, int] = (96, 128)) -> Batch:
    boxes = [[[10.0, 12, 60, 70], [50, 30, 120, 90]]]
    return make_batch([size], boxes, [[1, 3]], seed=seed)


def total(model: Detector, batch: Batch) -> torch.Tensor:
    return torch.stack(list(model.loss(batch).values())).sum()


def test_all_five_losses_reach_all_parameters(model: Detector) -> None:
    losses = model.loss(one_image())
    assert list(losses) == LOSSES
    assert all(loss.shape == () and loss > 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", ["no objects", "crowds only", "one object", "one pixel"])
def test_unusual_images_keep_every_loss_connected(model: Detector, kind: str) -> None:
    boxes = {"no objects": [[]], "one pixel": [[[5.0, 5, 6, 6]]]}.get(kind, [[[10.0, 12, 60, 70]]])
    batch = make_batch([(96, 128)], boxes, [[2] * len(boxes[0])])
    assert batch.targets is not None
    batch.targets.crowd |= kind == "crowds only"
    losses = model.loss(batch)
    assert list(losses) == LOSSES and all(loss.isfinite() for loss in losses.values())
    if kind in ("no objects", "crowds only"):
        assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    else:
        assert losses["loss_mask"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_faster_rcnn_is_the_same_without_masks() -> None:
    model = build_model("model=faster_rcnn", *SMALL)
    losses = model.loss(one_image())
    assert list(losses) == LOSSES[:-1]
    assert model.eval().predict(one_image()).masks is None


def test_a_batch_of_two_is_two_batches_of_one(model: Detector) -> None:
    model.eval()
    first, second = one_image(0), one_image(1, (90, 128))
    both = make_batch([(96, 128), (90, 128)], [[], []], [[], []])
    both.images = torch.cat([first.images, second.images])
    together = model.predict(both)
    for image, batch in enumerate((first, second)):
        alone = model.predict(batch)
        assert alone.labels[0].count_nonzero() > 5
        assert torch.equal(alone.labels[0], together.labels[image])
        torch.testing.assert_close(alone.boxes[0], together.boxes[image], rtol=0, atol=1e-3)
        torch.testing.assert_close(alone.scores[0], together.scores[image], rtol=0, atol=1e-5)


def test_sampling_is_keyed_by_the_image_alone(model: Detector) -> None:
    batch = one_image()
    first = model.loss(batch)
    torch.manual_seed(12345)
    again = model.loss(batch)
    assert all(torch.equal(first[name], again[name]) for name in LOSSES)
    batch.seeds = batch.seeds + 1
    assert not torch.equal(model.loss(batch)["loss_objectness"], first["loss_objectness"])


def test_bfloat16_losses_are_within_two_percent_of_float32(model: Detector) -> None:
    batch = one_image()
    torch.nn.init.normal_(model.box_head.branch.classifier.weight, std=0.01)
    model.eval()  # fixed batch-norm statistics: the same function in both precisions
    expected = model.loss(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(batch)
    for name in LOSSES:
        assert losses[name].dtype == torch.float32
        assert (losses[name] / expected[name] - 1).abs() < 0.02, name


def test_what_is_padded_does_not_matter(model: Detector) -> None:
    """Pixels outside the image, whatever they hold, are replaced after normalisation."""
    batch = one_image(size=(80, 100))
    expected = model.normalize(batch)
    assert not expected[:, :, 80:].any() and not expected[:, :, :, 100:].any()
    batch.images[:, :, 80:] = 77
    assert torch.equal(model.normalize(batch), expected)
    # Zero before the mean is taken off, as Matterport's canvas.
    model.pad_first = True
    pixels = model.backbone.pixels
    outside = -torch.tensor(pixels.mean) / torch.tensor(pixels.std)
    torch.testing.assert_close(model.normalize(batch)[0, :, 90, 90], outside)
    assert torch.equal(model.normalize(batch)[:, :, :80, :100], expected[:, :, :80, :100])


def test_detections_are_sorted_padded_and_inside_the_image(model: Detector) -> None:
    batch = one_image(size=(80, 100))
    found: Detections = model.eval().predict(batch)
    assert found.masks is not None
    assert found.boxes.shape == (1, 100, 4) and found.masks.shape == (1, 100, 28, 28)
    num = int(found.labels.count_nonzero())
    assert num > 5 and (found.labels[0, num:] == 0).all() and (found.scores[0, num:] == 0).all()
    assert (found.scores[0, :-1] >= found.scores[0, 1:]).all()
    assert found.boxes[0, :, 0::2].max() <= 100 and found.boxes[0, :, 1::2].max() <= 80
    assert found.masks[0, :num].min() > 0 and not found.masks[0, num:].any()


def test_anchor_levels_must_fit_the_neck() -> None:
    with pytest.raises(ValueError, match="anchors.sizes has 2 levels, but the neck gives 5"):
        build_model("model.rpn.anchors.sizes=[[8],[16]]", *SMALL[1:])
    with pytest.raises(InstantiationException, match="every level needs as many sizes"):
        build_model("model.rpn.anchors.sizes=[[8],[16,20]]", *SMALL[1:])


SIZES = [(192, 256), (256, 192), (224, 288), (192, 320)]


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU"
                ),
            ],
        ),
    ],
)
def test_compiled_parts_give_the_same_losses(
    model: Detector, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = copy.deepcopy(model)
    assert list(compiled.state_dict()) == list(model.state_dict())
    compile_part = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda *args, **kw: compile_part(*args, backend=backend, **kw)
    )
    monkeypatch.setattr(shutil, "which", lambda name: name)  # one is needed by Inductor alone
    compiled.compile_parts()
    assert list(compiled.state_dict()) == list(model.state_dict())
    torch._dynamo.reset()
    compiled_graphs = []
    sizes = SIZES if backend == "aot_eager" else SIZES[:1]
    for number, size in enumerate(sizes):
        batch = one_image(number, size)
        expected, found = model.loss(batch), compiled.loss(batch)
        for name in expected:
            assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-3), name
        torch.stack(list(expected.values())).sum().backward()
        torch.stack(list(found.values())).sum().backward()
        compiled_graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    for (name, ours), theirs in zip(compiled.named_parameters(), model.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= 1e-2 * theirs.grad.norm(), name
    # Each part is compiled for its first size, and once more for all others.
    assert set(compiled_graphs[1:]) <= {compiled_graphs[-1]}


def test_a_compiled_mask_head_is_not_asked_for_no_roi(
    model: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inductor's convolutions fail backward through none: see the slow test below."""

    def compiled(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(model.mask_head, "_compiled_call_impl", compiled, raising=False)
    assert model.loss(make_batch([(96, 128)], [[]], [[]]))["loss_mask"] == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_a_compiled_mask_head_without_a_positive_roi(model: Detector) -> None:
    assert model.mask_head is not None
    torch._dynamo.reset()
    model.mask_head.compile(dynamic=True)
    for batch in (one_image(), make_batch([(96, 128)], [[]], [[]])):
        model.zero_grad()
        model.loss(batch)["loss_mask"].backward()
    weight = model.mask_head.deconv.weight
    assert weight.grad is not None and not weight.grad.any()


def test_masks_of_empty_places_change_nothing(
    model: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([(96, 128), (64, 64)], [[[10.0, 12, 60, 70]], []], [[1], []])
    model.eval()
    model.box_head.selector.min_score = model.predict(batch).scores.median().item()
    expected = model.predict(batch)

    assert (expected.labels == 0).any() and (expected.labels > 0).any()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # or as on a GPU
    found = model.predict(batch)
    assert found.masks is not None and expected.masks is not None
    assert (found.masks - expected.masks).abs().max() < 1e-6
    assert (found.masks[found.labels == 0] == 0).all()


class NoFloat64(TorchDispatchMode):
    """Refuses float64, as Apple's GPUs do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **kwargs or {})
        for each in output if isinstance(output, (tuple, list)) else [output]:
            assert not isinstance(each, torch.Tensor) or each.dtype != torch.float64, func
        return output


def test_nothing_on_the_device_is_float64(model: Detector) -> None:
    batch = one_image()
    model.loss(batch)  # anchors are made on the host, once
    moved = batch.to("meta")
    assert moved.scales.device.type == "cpu" and moved.images.device.type == "meta"
    assert torch.float64 not in {
        value.dtype
        for name, value in vars(moved).items()
        if torch.is_tensor(value) and name != "scales"
    }
    with NoFloat64():
        total(model, batch).backward()
        model.predict(batch)


class Waits(TorchDispatchMode):
    """Notes operators whose result's size or value the host needs: on a GPU it waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.num_operators = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        self.num_operators += 1
        name = str(function).removeprefix("aten.").split(".")[0]
        indices = [
            index
            for argument in arguments
            if isinstance(argument, list | tuple)
            for index in argument
            if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
        ]
        by_mask = name in ("index", "index_put", "index_put_", "_unsafe_index") and indices
        data_dependent = ("nonzero", "_local_scalar_dense", "masked_select", "_unique2", "nms")
        if by_mask or name in data_dependent:
            self.seen.append(name)
        return function(*arguments, **(options or {}))


def test_a_step_has_one_operator_that_the_host_would_wait_for(
    model: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nms(boxes: torch.Tensor, *_: Any, num: int, **__: Any) -> tuple[torch.Tensor, ...]:
        # In the place of a GPU's kernel, which has a test of its own.
        index = torch.arange(num).clamp(max=boxes.shape[1] - 1).expand(len(boxes), -1)
        return index, torch.ones_like(index, dtype=torch.bool)

    monkeypatch.setattr(proposals, "batched_nms", nms)
    monkeypatch.setattr(matching, "_compare_touching", matching._compare_all)  # as on a GPU
    model.loss(one_image())  # what is copied to the device once is there
    with Waits() as waits:
        torch.stack(list(model.loss(one_image()).values())).sum().backward()
    assert waits.seen == ["nonzero"]  # the number of positive RoIs


@pytest.mark.gpu
def test_the_host_waits_for_a_gpu_twice_a_step_at_most(model: Detector) -> None:
    model.cuda()
    batch = one_image().to("cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            losses = model.loss(batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchroniz") as waits:
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) <= 2


def test_torch_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch, model: Detector) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        model.compile_parts()


def test_the_stages_of_a_cascade_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, compiled = build_model(*SMALL, "model/box_head=cascade"), []
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda part, **_: compiled.append(type(part).__name__)
    )
    model.compile_parts()
    assert compiled == ["Backbone", "FPN", "RPN", *["BoxBranch"] * 3, "MaskHead"]


def test_more_detections_than_proposals_can_give_are_refused() -> None:
    few = ["model.rpn.selector.num_proposals=100", "model.box_head.selector.num_detections=301"]
    with pytest.raises(UserError, match=r"num_detections=301 .*num_proposals=100 for 3 classes"):
        build_model(*SMALL, *few, class_names=["a", "b", "c"])


def test_masks_of_many_detections_come_in_parts(
    model: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = one_image()
    whole = model.eval().predict(batch)
    assert whole.masks is not None and (whole.labels > 0).sum() > 20
    monkeypatch.setattr("mrcnn_lightning.models.heads.mask_head._PER_PART", 7)
    parts = model.predict(batch)
    torch.testing.assert_close(parts.masks, whole.masks, rtol=1e-5, atol=1e-6)
