from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from mrcnn_lightning.data.near_copies import _groups, near_copies, perceptual_hash
from tests.conftest import shared


def photo(seed: int) -> Image.Image:
    """Smooth noise, as unlike another seed's as photos are."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", ["grey.png", "rgb.png", "turned.jpg"])
def test_hash_is_that_of_imagehash(tmp_path: Path, name: str) -> None:
    imagehash = pytest.importorskip("imagehash")
    image = photo(0).convert("L" if name == "grey.png" else "RGB")
    exif = Image.Exif()
    exif[0x0112] = 6 if name == "turned.jpg" else 1
    image.save(tmp_path / name, exif=exif, quality=100)
    upright = image.transpose(Image.Transpose.ROTATE_270) if name == "turned.jpg" else image
    theirs = imagehash.phash(upright, hash_size=16).hash.ravel()
    differing = (perceptual_hash(tmp_path / name) != theirs).sum()
    assert differing <= (2 if name == "turned.jpg" else 0)  # JPEG's own loss


def test_changed_photos_are_grouped_with_their_own(tmp_path: Path) -> None:
    files = []
    for seed, change in [
        (1, "none"),
        (2, "none"),
        (1, "half"),
        (1, "bright"),
        (3, "none"),
        (2, "q"),
    ]:
        image = photo(seed)
        if change == "half":
            image = image.resize((160, 120))
        if change == "bright":
            image = ImageEnhance.Brightness(image).enhance(1.15)
        files.append(tmp_path / f"{len(files)}.jpg")
        image.save(files[-1], quality=30 if change == "q" else 90)
    (tmp_path / "broken.jpg").write_bytes(files[0].read_bytes()[:300])
    paths = [tmp_path / "broken.jpg", *files, tmp_path / "missing.jpg", tmp_path / "broken.jpg"]
    assert near_copies(paths) == [[1, 3, 4], [2, 6]]
    assert near_copies([]) == []


def test_real_photos_are_all_different() -> None:
    folder = shared("data/balloon/val")
    assert near_copies(sorted(folder.glob("*.jpg"))) == []


def test_chains_are_one_group() -> None:
    signs = torch.where(torch.rand(60, 256) < 0.5, -1.0, 1.0)
    for step in range(1, 20):  # each differs from the one before in 30 bits
        signs[step] = signs[step - 1]
        signs[step, 12 * step : 12 * step + 30] *= -1
    signs[40] = signs[50]
    assert _groups(signs) == [list(range(20)), [40, 50]]
