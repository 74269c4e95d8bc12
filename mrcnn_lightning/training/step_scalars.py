"""The numbers of a training step, which stay on their device until somebody wants them."""

from collections.abc import Mapping

import torch
from torch import Tensor


class StepScalars:
    """The losses of the last step, read in one copy.

    Lightning would copy each value that it logs by itself, and each that a progress bar may show at
    every step: the host would wait for the device as often.
    """

    def __init__(self) -> None:
        self._values: dict[str, Tensor] = {}
        self._on_host: dict[str, Tensor] | None = None

    def keep(self, values: Mapping[str, Tensor]) -> None:
        """Take a new step's scalars, whose names become `train/NAME`."""
        self._values = {f"train/{name}": value.detach() for name, value in values.items()}
        self._on_host = None

    def on_host(self) -> dict[str, Tensor]:
        """All of them on the host, by name; it waits for the device at most once a step."""
        if self._on_host is None:
            values = list(self._values.values())
            copies = torch.stack(values).cpu().unbind() if values else ()
            self._on_host = dict(zip(self._values, copies, strict=True))
        return self._on_host
