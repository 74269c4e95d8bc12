"""A training framework for Mask R-CNN and Faster R-CNN."""
