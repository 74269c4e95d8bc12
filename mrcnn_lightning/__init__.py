"""A training framework for Mask R-CNN and Faster R-CNN."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrcnn_lightning.inference.drawing import draw
    from mrcnn_lightning.inference.predictor import Predictor

__version__ = "0.2.0"
__all__ = ["Predictor", "__version__", "draw"]


def __getattr__(name: str) -> Any:
    """What users import, loaded when it is asked for: torch takes seconds."""
    if name == "Predictor":
        from mrcnn_lightning.inference.predictor import Predictor

        return Predictor
    if name == "draw":
        from mrcnn_lightning.inference.drawing import draw

        return draw
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
