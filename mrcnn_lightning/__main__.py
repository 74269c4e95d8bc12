"""`python -m mrcnn_lightning` is the `mrcnn` command."""

from mrcnn_lightning.app.cli import app

app(prog_name="mrcnn")
