"""`python -m mrcnn_lightning` is the `mrcnn` command."""

from mrcnn_lightning.cli import app

app(prog_name="mrcnn")
