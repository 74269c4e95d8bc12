"""This project's Mask R-CNN and torchvision's, with the same weights, images and ground truth.

B images, G objects, H and W of the images.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import torch
import torchvision
from omegaconf import OmegaConf
from torch import Tensor
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from mrcnn_lightning.app.run import CONF
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.structures import Batch, Targets
from mrcnn_lightning.weights.load import load_detector

NUM_CLASSES = 80
MINI_MASK = 112
FEW = 16


@contextmanager
def without_kernels() -> Iterator[None]:
    """`torch.compile` traces, but makes no kernels, which takes minutes on a CPU."""
    compiler = torch.compile

    def traced(*args: Any, mode: Any = None, options: Any = None, **kwargs: Any) -> Callable:
        return compiler(*args, **kwargs | {"backend": "aot_eager"})

    with mock.patch.object(torch, "compile", traced):
        yield


def torchvision_model(size: tuple[int, int], *, is_small: bool = False) -> Any:
    """maskrcnn_resnet50_fpn as with its published weights: frozen norms, 3 trainable stages.

    Args:
        size: the shorter and the longest side that its transform resizes to.
        is_small: ResNet-18, and a few RoIs an image: it runs in a moment.
    """
    torch.manual_seed(0)
    model = torchvision.models.get_model(
        "maskrcnn_resnet50_fpn",
        weights=None,
        weights_backbone=None,
        num_classes=NUM_CLASSES + 1,
        min_size=size[0],
        max_size=size[1],
        **(
            {
                "box_batch_size_per_image": FEW,
                "rpn_post_nms_top_n_test": FEW,
                "box_detections_per_img": FEW,
            }
            if is_small
            else {}
        ),
    )
    backbone = "resnet18" if is_small else "resnet50"
    model.backbone = resnet_fpn_backbone(backbone_name=backbone, weights=None, trainable_layers=3)
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d):  # as small as in trained networks
            torch.nn.init.uniform_(layer.weight, 0.4, 0.6)
            torch.nn.init.normal_(layer.bias, 0, 0.1)
    return model


def our_model(peer: Any, *, is_small: bool = False) -> Detector:
    """`model=mask_rcnn` with the peer's weights and numbers."""
    overrides = [
        "backbone.weights=null",
        "model.roi_sampler.positive_fraction=0.25",
        "model.rpn.selector.min_score=0.0",
        "run_dir=unused",
    ]
    if is_small:
        overrides += [
            "backbone=resnet18",
            f"model.roi_sampler.num_rois={FEW}",
            f"model.rpn.selector.num_proposals={FEW}",
            f"model.box_head.selector.num_detections={FEW}",
        ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = OmegaConf.to_container(hydra.compose("train", overrides).model, resolve=True)
    model = hydra.utils.instantiate(cfg, _convert_="all")(
        class_names=[f"class {number}" for number in range(NUM_CLASSES)]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "torchvision.pth")
        torch.save(peer.state_dict(), path)
        load_detector(model, str(path))
    return model


@dataclass
class Scene:
    """Noise images with elliptic objects, as both sides want them."""

    batch: Batch
    images: list[Tensor]  # B of (3, H, W) in 0..1
    targets: list[dict[str, Tensor]]


def scene(size: tuple[int, int], num_objects: list[int], device: torch.device) -> Scene:
    """A batch of images of `size` (H, W), a multiple of 32, with so many objects each."""
    torch.manual_seed(0)
    height, width = size
    pixels = torch.randint(0, 256, (len(num_objects), 3, height, width), dtype=torch.uint8)
    most = max(num_objects)
    boxes = torch.zeros(len(num_objects), most, 4)
    labels = torch.zeros(len(num_objects), most, dtype=torch.int64)
    minis = torch.zeros(len(num_objects), most, MINI_MASK, MINI_MASK, dtype=torch.uint8)
    cells = (torch.arange(MINI_MASK) + 0.5) / MINI_MASK * 2 - 1
    ellipse = (cells[:, None] ** 2 + cells**2 <= 1).to(torch.uint8)
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    targets = []
    for image, num in enumerate(num_objects):
        limit = torch.tensor([width, height])
        sides = torch.exp(torch.rand(num, 2) * 2.8) * limit / 25  # from 1/25 to 2/3 of the image
        corners = torch.rand(num, 2) * (limit - sides)
        boxes[image, :num] = torch.cat([corners, corners + sides], dim=1)
        labels[image, :num] = torch.randint(1, NUM_CLASSES + 1, (num,))
        minis[image, :num] = ellipse
        x1, y1, x2, y2 = boxes[image, :num, :, None, None].unbind(1)
        masks = ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1
        target = {"boxes": boxes[image, :num], "labels": labels[image, :num], "masks": masks.byte()}
        targets.append({name: value.to(device) for name, value in target.items()})
    batch = Batch(
        images=pixels,
        image_ids=torch.arange(len(pixels)),
        windows=torch.tensor([[0.0, 0.0, width, height]]).repeat(len(pixels), 1),
        scales=torch.ones(len(pixels), 2, dtype=torch.float64),
        original_sizes=torch.tensor([[height, width]]).repeat(len(pixels), 1),
        seeds=torch.arange(len(pixels)),
        targets=Targets(
            boxes=boxes,
            labels=labels,
            crowd=torch.zeros_like(labels, dtype=torch.bool),
            masks=minis,
            mask_frames=boxes.clone(),
        ),
    )
    images = [(image.to(device) / 255) for image in pixels]
    return Scene(batch.to(device), images, targets)
