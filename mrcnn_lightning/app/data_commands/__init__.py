"""The commands of `mrcnn data`; each registers itself."""

from mrcnn_lightning.app.data_commands import (  # noqa: F401
    anchors,
    check,
    convert,
    report,
    sets,
    stats,
)
