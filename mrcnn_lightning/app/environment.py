"""Where a run comes from: commit, versions, device and data."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from mrcnn_lightning import __version__
from mrcnn_lightning.data.datamodule import COCODataModule

_PACKAGES = ("torchvision", "lightning", "hydra-core", "hotcoco", "numpy")
_PATIENCE = 10  # seconds, for git on a slow file system


def describe_environment(data: COCODataModule) -> dict[str, Any]:
    """Commit, versions, device and data set of a run.

    Args:
        data: set up.
    """
    return {
        "git": _commit(),
        "versions": {
            "python": platform.python_version(),
            "mrcnn_lightning": __version__,
            "torch": str(torch.__version__),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "cuda": torch.version.cuda,
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "data": {
            split: {
                "annotations": ", ".join(data.files[split][1]),
                "fingerprint": annotations.fingerprint,
                "images": len(annotations),
                "objects": len(annotations.labels),
                "classes": annotations.class_names,
            }
            for split, annotations in data.annotations.items()
        },
    }


def _commit() -> dict[str, Any] | None:
    """The commit of the project's checkout, or else of the folder that the run was started in."""
    for folder in (Path(__file__).parent, Path.cwd()):
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain")
        # Installed into an environment that lies within another checkout, the package is no part.
        is_tracked = folder == Path.cwd() or _git(folder, "ls-files", Path(__file__).name)
        if commit and changes is not None and is_tracked:
            root = _git(folder, "rev-parse", "--show-toplevel")
            return {"commit": commit, "dirty": bool(changes), "folder": root}
    return None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where there is no git, or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
