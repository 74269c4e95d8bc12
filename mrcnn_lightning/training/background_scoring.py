"""Evaluations whose scores are made while training goes on."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mrcnn_lightning.evaluation.coco import COCOMetric, Evaluated
from mrcnn_lightning.results.image_detections import per_image
from mrcnn_lightning.structures import Batch, Detections
from mrcnn_lightning.training.process_beside import ProcessBeside

# Batches whose masks are not pasted yet; their memory is the host's.
_MOST_WAITING = 16

Scores = tuple[dict[str, float], Evaluated | None]


@dataclass
class Pending:
    """An evaluation whose scores are not there yet."""

    scores: Callable[[], Scores]  # waits for them; other ranks than 0 have none
    steps: int  # that were trained before it
    logged_at: int  # as `logged_step`
    # Of a checkpoint that is written within the evaluation: `epoch` and `loops`.
    place: dict[str, Any]
    acts: list[Callable[[], None]] = field(default_factory=list)  # what is done then


class BackgroundScoring:
    """Masks are pasted beside the prediction of the next batches, scores made beside training."""

    def __init__(self) -> None:
        self._process = ProcessBeside()
        self._pasted: deque[Callable[[], Any]] = deque()

    def update(
        self, metric: COCOMetric, detections: Detections, batch: Batch, paste: Callable[..., Any]
    ) -> None:
        """Give a metric the detections of a batch, sooner or later, but in order."""
        # Pixels and ground truth stay here.
        place = replace(batch, images=batch.images.new_empty(0), targets=None)
        self._pasted.append(
            self._process.submit(
                per_image, detections.to("cpu"), place.to("cpu", non_blocking=False), paste
            )
        )
        if len(self._pasted) > _MOST_WAITING:
            metric.update(self._pasted.popleft()())

    def score(self, metric: COCOMetric, *, is_first: bool) -> Callable[[], Scores]:
        """Have what a metric of all ranks was given scored, and reset it.

        Args:
            metric: of this rank.
            is_first: whether this is rank 0, which scores for all.
        """
        while self._pasted:
            metric.update(self._pasted.popleft()())
        with metric.sync_context(dist_sync_fn=metric.dist_sync_fn):
            scores = self._process.submit(_scores, metric.on_host()) if is_first else _none
        metric.reset()
        return scores

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _scores(metric: COCOMetric) -> Scores:
    return metric.compute_here(), metric.evaluated


def _none() -> Scores:
    return {}, None
