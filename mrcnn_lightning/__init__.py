"""A training framework for Mask R-CNN and Faster R-CNN."""

__version__ = "0.1.0"
