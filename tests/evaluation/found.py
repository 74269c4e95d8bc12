"""Results in COCO's format as the arrays that are scored."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mrcnn_lightning.evaluation.scoring import Found


def found(results: Sequence[dict[str, Any]]) -> Found:
    """Results that have boxes or masks, or both."""
    boxes = [each.get("bbox", [0.0] * 4) for each in results]
    return Found(
        image_ids=np.array([each["image_id"] for each in results], dtype=np.int64),
        category_ids=np.array([each["category_id"] for each in results], dtype=np.int64),
        scores=np.array([each["score"] for each in results], dtype=np.float64),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        rles=[each["segmentation"] for each in results if "segmentation" in each] or None,
    )
