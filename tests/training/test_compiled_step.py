from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager_decomp_partition_with_mode

from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.structures import Batch, map_tensors
from mrcnn_lightning.training import compiled_step
from mrcnn_lightning.training.compiled_step import CompiledStep
from mrcnn_lightning.user_error import UserError
from tests.conftest import build_model, make_batch
from tests.models.test_detector import Waits
from tests.training.test_task import build

SMALL = [
    "experiment=shapes",
    "backbone.width=16",
    "backbone.norm=frozen_bn",
    "model.neck.out_channels=32",
    "model.box_head.trunk.hidden=64",
    "model.mask_head.trunk.num_convs=1",
]
WHOLE = {
    "mask_rcnn": ["backbone=resnet50"],
    "mask_rcnn_d2": ["backbone=resnet50_caffe"],
    "cascade_mask_rcnn": ["backbone=resnet50_caffe"],
    "mask_rcnn_d2_c4": ["backbone=resnet50_caffe_c4"],
    "mask_rcnn_d2_gn": ["backbone=resnet50_gn"],
    "matterport": ["backbone=resnet101_tensorflow"],
}
FEW = [
    "model.roi_sampler.num_rois=32",
    "model.rpn.selector.pre_nms_topk_in_training=200",
    "model.rpn.selector.num_proposals_in_training=100",
]
WIDE, HIGH = (128, 192), (192, 128)


class Graphs:
    """Counts graphs, whose operators PyTorch then runs one by one, and notes those that wait.

    With Inductor's decompositions: of group norms PyTorch's own idea of strides is wrong.
    """

    def __init__(self) -> None:
        self.frame_count = 0
        self.waits = Waits()

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.frame_count += 1
        return aot_eager_decomp_partition_with_mode(graph, inputs, self.waits)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    torch._dynamo.reset()
    graphs, whole = Graphs(), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda loss, mode, **kw: whole(loss, backend=graphs, **kw)
    )
    return graphs


def two_images(size: tuple[int, int], seed: int) -> Batch:
    height, width = size
    boxes = [[[10.0, 12, 60, 70], [50, 30, 120, 90]], [[5.0, 5, 40, 50]]]
    return make_batch([size, (height - 6, width - 10)], boxes, [[1, 3], [2]], seed=seed)


def doubled(batch: Batch) -> Batch:
    return map_tensors(batch, lambda each: each.double() if each.is_floating_point() else each)


def gradients(model: Detector, losses: dict[str, Tensor]) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(torch.stack(list(losses.values())).sum(), trained))


def same(step: CompiledStep, batch: Batch, *, rel: float) -> None:
    """A step's losses and gradients are those that the model gives without a graph."""
    found, expected = step(batch), step.model.loss(batch)
    assert list(found) == list(expected)
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=rel), name
    ours, theirs = gradients(step.model, found), gradients(step.model, expected)
    for gradient, other in zip(ours, theirs, strict=True):
        assert (gradient - other).norm() <= rel * other.norm().clamp(min=1e-12)


def check(overrides: list[str], graphs: Graphs) -> None:
    torch.manual_seed(0)
    step = CompiledStep(build_model(*overrides, *FEW).double())
    # In float32 rounding alone turns ReLUs, and proposals that are nearly equal.
    for seed, (size, num_graphs) in enumerate([(WIDE, 1), (HIGH, 2), (WIDE, 2)]):
        same(step, doubled(two_images(size, seed)), rel=1e-9)
        assert graphs.frame_count == num_graphs


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_every_model_is_one_graph_for_each_shape(name: str, graphs: Graphs) -> None:
    check([f"model={name}", *WHOLE[name]], graphs)


@pytest.fixture
def step(graphs: Graphs) -> CompiledStep:
    torch.manual_seed(0)
    return CompiledStep(build_model(*SMALL, *FEW))


def test_batches_of_a_known_shape_have_its_graph(step: CompiledStep, graphs: Graphs) -> None:
    """More objects, none at all, fewer images: losses and gradients stay those without a graph."""
    same(step, two_images(WIDE, 0), rel=1e-5)
    first = step(two_images(WIDE, 0))
    values = {name: loss.item() for name, loss in first.items()}
    one = make_batch([WIDE], [[[10.0, 12, 60, 70]] * 5], [[1] * 5])
    for batch in (two_images(WIDE, 1), one, make_batch([WIDE, WIDE], [[], []], [[], []])):
        same(step, batch, rel=1e-5)
    assert graphs.frame_count == 1 and graphs.waits.num_operators > 1000 and not graphs.waits.seen
    assert {name: loss.item() for name, loss in first.items()} == values  # no graph's own memory


def test_further_shapes_go_without_a_graph(
    step: CompiledStep, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_step, "MOST_GRAPHS", 0)
    with pytest.warns(
        UserWarning, match="has made 0 graphs, .* 2 images of 128x192 pixels"
    ) as seen:
        for size in (WIDE, HIGH):
            same(step, two_images(size, 0), rel=1e-5)
    assert len(seen) == 1 and graphs.frame_count == 0


def test_a_shape_that_no_graph_can_be_made_of_is_tried_once(
    step: CompiledStep, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    same(step, two_images(WIDE, 0), rel=1e-5)
    known, tried = step._loss, []

    def fails_for_high(batch: Batch) -> dict[str, Tensor]:
        if batch.images.shape[2:] == HIGH:
            tried.append(batch)
            raise torch._dynamo.exc.TorchDynamoException("no")
        return known(batch)

    monkeypatch.setattr(step, "_loss", fails_for_high)
    with pytest.warns(UserWarning, match="goes without a graph for some batches: no") as seen:
        for seed, size in enumerate([HIGH, HIGH, WIDE]):
            same(step, two_images(size, seed), rel=1e-5)
    assert len(seen) == len(tried) == graphs.frame_count == 1


def test_a_batch_is_not_filled_up_where_batch_norms_are_trained(
    graphs: Graphs,
) -> None:
    step = CompiledStep(build_model(*SMALL, "backbone.norm=bn"))
    step._num_images = 2
    assert len(step._filled(make_batch([WIDE], [[]], [[]]))) == 1
    step.model.eval()
    assert len(step._filled(make_batch([WIDE], [[]], [[]]))) == 2


def test_a_model_that_makes_no_graph(step: CompiledStep, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(batch: Batch) -> dict[str, Tensor]:
        torch._dynamo.graph_break()
        return {"loss": batch.images.sum()}

    step._loss = torch.compile(loss, mode=None, fullgraph=True)
    with pytest.raises(UserError, match="can make no graph of this model .* task.compiled=parts"):
        step(two_images(WIDE, 0))


def test_a_run_with_one_graph_a_step_is_the_run_without(
    tiny: Callable[..., list[str]],
    graphs: Graphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accumulated, clipped, with a schedule; gradients are kept in memory that is no graph's."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    weights = []
    for compiled in (False, "step"):
        torch.manual_seed(0)
        task, data, trainer = build(
            tiny(
                "trainer.max_steps=2",
                "trainer.accumulate_grad_batches=2",
                "trainer.gradient_clip_val=0.1",
                "trainer.limit_val_batches=0",
                f"task.compiled={str(compiled).lower()}",
            )
        )
        trainer.fit(task, datamodule=data)
        assert trainer.global_step == 2
        weights.append(task.model.state_dict())
    assert graphs.frame_count >= 1
    places = {id(parameter): parameter.grad for parameter in task.model.parameters()}
    task.optimizer_zero_grad(0, 0, trainer.optimizers[0])
    for parameter in task.model.parameters():
        if parameter.requires_grad:
            assert parameter.grad is places[id(parameter)] and not parameter.grad.any()
    for name, ours in weights[1].items():
        torch.testing.assert_close(ours, weights[0][name], rtol=1e-4, atol=1e-6, msg=name)
