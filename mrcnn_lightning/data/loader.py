"""A DataLoader that knows how long it kept its user waiting."""

import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from mrcnn_lightning.data.transforms import Sample


class TimedLoader(DataLoader[Sample]):
    """torch's DataLoader; arguments are the same.

    Attributes:
        seconds_waited: for batches, in all since it was made.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches, as they come."""
        start = time.perf_counter()
        for batch in super().__iter__():
            self.seconds_waited += time.perf_counter() - start
            yield batch
            start = time.perf_counter()
