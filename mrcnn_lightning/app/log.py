"""The run's log holds what the screen shows, and what is right causes no warning."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mrcnn_lightning.app.ranks import own_rank

# Starts of warnings about what is meant to be so.
KNOWN_WARNINGS = (
    "`isinstance(treespec, LeafSpec)` is deprecated",  # Lightning's own code, with torch 2.15
    "You are using a custom batch sampler `EvalBatchSampler`",  # it deals every image, as it should
    "The dirpath has changed from",  # a resumed run writes to a new folder
    "Checkpoint directory",  # a run that goes on in its folder
    "You're resuming from a checkpoint that ended before the epoch ended",  # as it should
)


@contextmanager
def kept_in_log() -> Iterator[None]:
    """Let warnings and Lightning's lines go to the file that Hydra opened, beside the screen.

    Of several processes the first has the screen, others their files alone.
    """
    root = logging.getLogger()
    files = [handler for handler in root.handlers if isinstance(handler, logging.FileHandler)]
    if own_rank() > 0:
        root.handlers = list(files)
    lightning = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    apart = [logger for logger in lightning if not logger.propagate]
    for logger in apart:
        logger.handlers += files
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(_is_no_tip)
    with warnings.catch_warnings():
        for start in KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=re.escape(start))
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            tips.removeFilter(_is_no_tip)
            for logger in apart:
                logger.handlers = [each for each in logger.handlers if each not in files]


def log_to_file(text: str) -> None:
    """Put text into the run's log alone."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, text, None, None)
            handler.handle(record)


def _is_no_tip(record: logging.LogRecord) -> bool:
    """Whether a line is more than Lightning's advertisement of its own services."""
    return "💡 Tip:" not in record.getMessage()
