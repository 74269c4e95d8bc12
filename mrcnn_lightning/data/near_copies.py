"""Copies and near-copies among image files, by a perceptual hash.

N images, F images whose neighbours are looked for at once.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from mrcnn_lightning.data.images import read_image
from mrcnn_lightning.user_error import UserError

# The hash looks at an image of 64 x 64 pixels and keeps its 16 x 16 lowest frequencies.
_SIDE, _KEPT = 64, 16
# Of 256 bits. Measured on photos of COCO and the balloon set: halved, re-encoded (JPEG quality 20),
# brighter or darker by a fifth, or with 1 % cut off each side, a photo differs from itself in at
# most 38 bits (nearly all in fewer than 24), from any other in at least 94.
_MOST_BITS = 40
_THREADS = 4
_PER_PASS = 512


def near_copies(paths: Sequence[str | Path]) -> list[list[int]]:
    """Groups of images that show the same: copies, rescaled, re-encoded or a little brightened.

    Two images belong together if their perceptual hashes differ in few bits, and so do those that
    a chain of such pairs joins (frames of a video, say). The hash is that of imagehash's `phash`
    with `hash_size=16`.

    Args:
        paths: of N image files.

    Returns:
        The indices of each group of at least two in ascending order, the groups by their first.
        Unreadable images are in none.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = list(threads.map(_hash_or_none, paths))
    readable = [index for index, each in enumerate(hashes) if each is not None]
    if len(readable) < 2:
        return []
    bits = torch.from_numpy(np.stack([each for each in hashes if each is not None]))
    groups = _groups(2 * bits.to(torch.float32) - 1)
    return [[readable[number] for number in group] for group in groups]


def perceptual_hash(path: str | Path) -> npt.NDArray[np.bool_]:
    """Which low frequencies of an upright, grey image are above their median, (256,).

    Raises:
        UserError: the image cannot be read.
    """
    pixels = np.asarray(
        _grey(path).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64
    )
    frequencies = _DCT @ pixels @ _DCT.T  # (16, 16)
    return np.asarray(frequencies > np.median(frequencies)).ravel()


def _cosines() -> npt.NDArray[np.float64]:
    """The first rows of the discrete cosine transform (type II, not normalised), (16, 64)."""
    frequency, pixel = np.arange(_KEPT)[:, None], np.arange(_SIDE)
    return np.asarray(2 * np.cos(np.pi * frequency * (2 * pixel + 1) / (2 * _SIDE)))


_DCT = _cosines()


def _hash_or_none(path: str | Path) -> npt.NDArray[np.bool_] | None:
    try:
        return perceptual_hash(path)
    except UserError:
        return None


def _grey(path: str | Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            if file.format == "JPEG":
                # Decoded at a fraction of its size, which is most of the time.
                file.draft("L", (4 * _SIDE, 4 * _SIDE))
                return ImageOps.exif_transpose(file).convert("L")
    except Exception as error:  # what Pillow raises for damaged files has no common ancestor
        raise UserError(f"cannot read the image {path}: {error}") from error
    image: Image.Image = to_pil_image(read_image(path))
    return image.convert("L")


def _groups(signs: Tensor) -> list[list[int]]:
    """Connected groups of hashes (N, 256) of ones and minus ones.

    A product of matrices counts the bits in which all pairs differ: exact, and 10,000 images take
    seconds.
    """
    all_numbers = torch.arange(len(signs))
    num_near = torch.cat([_near(signs, part).sum(dim=1) for part in all_numbers.split(_PER_PASS)])
    is_open = num_near > 1  # near another than itself, and in no group yet
    groups = []
    for start in is_open.nonzero().flatten().tolist():
        if not is_open[start]:
            continue
        is_open[start] = False
        group, edge = [start], torch.tensor([start])
        while len(edge):
            found = torch.zeros_like(is_open)
            for part in edge.split(_PER_PASS):
                found |= _near(signs, part).any(dim=0)
            edge = (found & is_open).nonzero().flatten()
            is_open[edge] = False
            group += edge.tolist()
        groups.append(sorted(group))
    return groups


def _near(signs: Tensor, rows: Tensor) -> Tensor:
    """Which hashes are near those of some rows, (F, N)."""
    num_bits = signs.shape[1]
    return signs[rows] @ signs.T >= num_bits - 2 * _MOST_BITS
