"""The generated shapes as images of five bands of uint16, whose first three are the colours."""

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image


def five_bands(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """(H, W, 5): red, green and blue 257 times, then their mean and its negative."""
    colours = rgb.astype(np.uint16) * 257
    grey = colours.mean(axis=2).astype(np.uint16)
    return np.dstack([colours, grey, 65535 - grey])


def write_five_bands(source: Path, target: Path) -> Path:
    """The set in `source` with arrays for images; returns `target`."""
    shutil.copytree(source / "annotations", target / "annotations")
    for split in ("train", "val"):
        file = target / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        (target / split).mkdir()
        for image in content["images"]:
            rgb = np.asarray(Image.open(source / split / image["file_name"]).convert("RGB"))
            image["file_name"] = str(Path(image["file_name"]).with_suffix(".npy"))
            np.save(target / split / image["file_name"], five_bands(rgb))
        file.write_text(json.dumps(content))
    return target
