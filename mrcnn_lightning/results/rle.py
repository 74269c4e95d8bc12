"""COCO's compressed run lengths of masks.

N masks, m side of a predicted mask, H and W of an image.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pycocotools.mask
import torch
from torch import Tensor

from mrcnn_lightning.results.pasting import Crop, Crops


def encode_crop(crop: npt.NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> bytes:
    """COCO's compressed run lengths of an image of `size` whose only ones are in `crop` (h, w)."""
    height, width = size
    # Column after column with a zero below each, so that no run goes on into the next column.
    step = crop.shape[0] + 1
    cells = np.zeros(crop.shape[1] * step + 1, dtype=np.bool_)
    cells[1:].reshape(-1, step)[:, :-1] = crop.T
    changes = np.flatnonzero(cells[1:] != cells[:-1])  # start, end, start, end, ...
    column, row = np.divmod(changes, step)
    bounds = (left + column) * height + top + row
    if crop.shape[0] == height:
        # A run that reaches the bottom goes on where the next column starts at the top.
        joins = np.flatnonzero(bounds[1:-1:2] == bounds[2::2]) * 2 + 1
        bounds = np.delete(bounds, [joins, joins + 1])
    counts = [*np.diff(bounds, prepend=0).tolist(), height * width - int(bounds[-1:].sum())]
    if counts[-1] == 0:
        counts.pop()
    rle = {"counts": counts, "size": [height, width]}
    encoded: bytes = pycocotools.mask.frPyObjects(rle, height, width)["counts"]
    return encoded


def encode_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], crops: Crops) -> list[bytes]:
    """Masks (N, m, m) pasted at their boxes (N, 4) and run-length encoded, without a canvas."""
    return [encode_crop(*crop, size) for crop in crops(masks, boxes, size)]


def decode_crops(rles: Sequence[bytes], size: tuple[int, int]) -> Iterator[Crop]:
    """The crops of an image of `size` that hold all ones of masks, one after the other."""
    for rle in rles:
        whole = {"size": list(size), "counts": rle}
        left, top, width, height = (int(side) for side in pycocotools.mask.toBbox(whole))
        mask = pycocotools.mask.decode(whole)[top : top + height, left : left + width]
        yield mask.astype(np.bool_), top, left


def decode_masks(rles: list[bytes], size: tuple[int, int]) -> Tensor:
    """Compressed run lengths of an image of `size` (H, W) as masks (N, H, W) bool."""
    if not rles:
        return torch.zeros(0, *size, dtype=torch.bool)
    masks = pycocotools.mask.decode([{"size": list(size), "counts": rle} for rle in rles])
    return torch.from_numpy(masks).permute(2, 0, 1).bool()
