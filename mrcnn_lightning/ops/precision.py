"""The number type to compute in."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay what they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
