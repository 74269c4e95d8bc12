"""The backbone's last stage, where RoIs go through it one by one (C4).

R RoIs, C channels, P bins a side.
"""

from typing import NamedTuple

from torch import Tensor, nn


class RoIStage(NamedTuple):
    """What pooled features of RoIs go through before the heads' own layers."""

    layers: nn.Module
    in_channels: int
    out_channels: int
    stride: int

    def __call__(self, pooled: Tensor) -> Tensor:
        """(R, C, P, P) to (R, out_channels, size(P), size(P))."""
        output: Tensor = self.layers(pooled)
        return output

    def size(self, output_size: int) -> int:
        """Bins a side that come out of so many."""
        return -(-output_size // self.stride)
