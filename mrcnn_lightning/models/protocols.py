"""What the parts of a detector promise each other.

B images, R RoIs, N RoIs of all images, D detections, m mask side.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from mrcnn_lightning.models.heads.roi_features import RoIFeatures
from mrcnn_lightning.models.heads.roi_sampler import SampledRoIs
from mrcnn_lightning.structures import Detections, Targets


class Part(Protocol):
    """A module, as far as the detector looks at it as one."""

    def modules(self) -> Iterator[nn.Module]:
        """Itself and all modules in it."""

    def compile(self, **options: Any) -> None:
        """Have `torch.compile` make its kernels."""


class Neck(Part, Protocol):
    """The backbone's maps to the levels that the RPN and the RoI heads see."""

    out_channels: int  # of every level
    strides: list[int]  # of the levels that the RPN sees
    roi_strides: list[int]  # of the first of them, which RoIs are cut from

    def __call__(self, features: list[Tensor]) -> list[Tensor]:
        """The levels, each (B, C, height, width)."""


class BoxHead(Part, Protocol):
    """Classifies RoIs and refines their boxes."""

    roi_features: RoIFeatures
    selector: Any

    def loss(
        self, features: Sequence[Tensor], rois: SampledRoIs, targets: Targets, windows: Tensor
    ) -> dict[str, Tensor]:
        """The losses by name, each a scalar."""

    def predict(
        self, features: Sequence[Tensor], proposals: Tensor, valid: Tensor, windows: Tensor
    ) -> Detections:
        """Detections without masks, from proposals (B, R, 4) where `valid` (B, R) is true."""


class MaskHead(Part, Protocol):
    """Gives each RoI a mask."""

    roi_features: RoIFeatures

    def __call__(
        self, features: Sequence[Tensor], boxes: Tensor, image_index: Tensor, labels: Tensor
    ) -> Tensor:
        """Mask logits (N, m, m) of the classes `labels` (N,) in boxes (N, 4)."""

    def loss(
        self, features: Sequence[Tensor], rois: SampledRoIs, targets: Targets
    ) -> dict[str, Tensor]:
        """The losses by name, each a scalar."""

    def predict(self, features: Sequence[Tensor], detections: Detections) -> Tensor:
        """Mask probabilities (B, D, m, m) of the detections' own classes."""
