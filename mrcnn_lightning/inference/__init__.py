"""From a checkpoint to what is in photos."""

from mrcnn_lightning.inference.predictor import Predictor as Predictor
