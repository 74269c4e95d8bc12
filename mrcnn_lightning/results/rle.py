"""COCO's compressed run lengths of masks.

N masks, m side of a predicted mask, H and W of an image, E edges between ones and zeros, R runs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pycocotools.mask
import torch
from torch import Tensor

from mrcnn_lightning.results.pasting import Crop, Paste

Ints = npt.NDArray[np.int64]
# Masks that are encoded at a time.
_TOGETHER = 100


def encode_crop(crop: npt.NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> bytes:
    """COCO's compressed run lengths of an image of `size` whose only ones are in `crop` (h, w)."""
    # Column after column with a zero below each, so that no run goes on into the next column.
    step = crop.shape[0] + 1
    cells = np.zeros(crop.shape[1] * step + 1, dtype=np.bool_)
    cells[1:].reshape(-1, step)[:, :-1] = crop.T
    changes = np.flatnonzero(cells[1:] != cells[:-1])
    column, row = np.divmod(changes, step)
    places = (left + column) * size[0] + top + row
    return _encoded(np.zeros_like(places), places, 1, size)[0]


def encode_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], paste: Paste) -> list[bytes]:
    """Masks (N, m, m) pasted at their boxes (N, 4) and run-length encoded, without a canvas."""
    rles: list[bytes] = []
    for first in range(0, len(masks), _TOGETHER):
        chosen = slice(first, first + _TOGETHER)
        crops = paste(masks[chosen], boxes[chosen], size)
        numbers, places, unclear = crops.edges(size[0])
        encoded = _encoded(numbers, places, len(crops), size)
        for number in unclear:
            encoded[number] = encode_crop(*crops.crop(number), size)
        rles += encoded
    return rles


def _encoded(numbers: Ints, places: Ints, num_masks: int, size: tuple[int, int]) -> list[bytes]:
    """The run lengths of masks in an image of `size`, given their edges.

    Args:
        numbers: (E,) of the masks, in order.
        places: (E,) in the image's pixels, numbered column after column; of each mask in order.
            Two edges at one place are none: a run that reaches the bottom goes on at the top of
            the next column.
        num_masks: one at least; some may have no edge.
        size: height and width.
    """
    area = size[0] * size[1]
    keys = numbers * (area + 1) + places
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    is_odd = np.diff(starts, append=len(keys)) % 2 == 1
    kept = starts[is_odd & (places[starts] < area)]
    numbers, places = numbers[kept], places[kept]
    lengths = np.bincount(numbers, minlength=num_masks) + 1  # runs of each mask
    ends = lengths.cumsum()
    bounds = np.full(ends[-1], area)  # (R,), where each run ends
    bounds[np.arange(len(places)) + numbers] = places
    runs = np.diff(bounds, prepend=0)
    runs[ends[:-1]] = bounds[ends[:-1]]
    counts = runs.astype(np.uint32)
    spans = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
    plain = [{"counts": counts[first:end], "size": size} for first, end in spans]
    return [rle["counts"] for rle in pycocotools.mask.frPyObjects(plain, *size)]


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
