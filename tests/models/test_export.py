import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv_functional

from mrcnn_lightning.data.images import read_image
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.structures import Batch
from tests.conftest import build_model, shared

NUM_PHOTOS = 20
SIZE = (192, 256)


class Predict(nn.Module):
    """Tensors in and out, as a program has them."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, windows: Tensor) -> tuple[Tensor | None, ...]:
        nothing = torch.empty(0)
        found = self.model.predict(
            Batch(
                images=images,
                windows=windows,
                image_ids=nothing,
                scales=nothing,
                original_sizes=nothing,
                seeds=nothing,
                targets=None,
            )
        )
        return found.boxes, found.scores, found.labels, found.masks


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_exported_program_predicts_as_the_model(strict: bool) -> None:
    files = sorted(shared("data/coco_tiny/val2017").glob("*.jpg"))[:NUM_PHOTOS]
    assert len(files) == NUM_PHOTOS
    torch.manual_seed(0)
    model = build_model(
        "model=mask_rcnn_light",
        "backbone=resnet18_slim",
        "backbone.norm=gn",
        "model.box_head.selector.min_score=0.01",
    ).eval()
    nn.init.normal_(model.box_head.branch.classifier.weight, std=0.1)
    predict = Predict(model)
    photos = torch.stack([tv_functional.resize(read_image(file), list(SIZE)) for file in files])
    windows = torch.tensor([[0.0, 0, SIZE[1], SIZE[0]]]).repeat(NUM_PHOTOS, 1)
    windows[::3, 2:] -= 30  # images that do not fill their canvas
    batch = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        exported = torch.export.export(
            predict,
            (photos[:2], windows[:2]),
            dynamic_shapes={"images": {0: batch}, "windows": {0: batch}},
            strict=strict,
        )
    assert "mrcnn_lightning.batched_nms" in str(exported.graph)
    program = exported.module()
    for images in torch.arange(NUM_PHOTOS).split([1, 3, 8, 8]):
        with torch.no_grad():
            expected = predict(photos[images], windows[images])
            found = program(photos[images], windows[images])
        assert (expected[2] > 0).sum() > 20 * len(images)
        assert torch.equal(found[2], expected[2])
        for ours, theirs, within in zip(found, expected, (1e-3, 1e-5, 0, 1e-5), strict=True):
            assert (ours - theirs).abs().max() <= within
