"""A network's first convolution, which alone depends on how many channels an image has."""

from torch import nn


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Its name in the network, and itself."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            return name, layer
    raise AssertionError("every backbone begins with a convolution")


def take_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by a fresh one for so many channels, if it has others."""
    name, old = first_convolution(network)
    if old.in_channels == channels:
        return
    assert old.groups == 1
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, own_name = name.rpartition(".")
    setattr(network.get_submodule(parent), own_name, new)
