"""Masks as polygons that cover the same pixels, for formats that hold nothing else.

P points of a polygon; H and W of the image.
"""

import numpy as np
import pycocotools.mask

from mrcnn_lightning.data.formats.image_set import LabeledObject, Mask, Points


def single_polygon(labeled: LabeledObject, size: tuple[int, int]) -> Points | None:
    """One polygon (P, 2) for an object of whatever shape, None if it is a box or has no pixel.

    Several parts, and holes, are joined by lines there and back, which cover nothing, as
    Ultralytics writes them. Polygons that overlap each other become the outline of their pixels.
    """
    if labeled.shape is None:
        return None
    if not isinstance(labeled.shape, bytes):
        joined = join([np.asarray(polygon).reshape(-1, 2) for polygon in labeled.shape])
        if len(labeled.shape) == 1 or _covers(joined, labeled, size):
            return joined
    mask = labeled.mask(size)
    loops = [] if mask is None else outlines(mask)
    return join(loops) if loops else None


def outlines(mask: Mask) -> list[Points]:
    """Closed loops (P, 2) along the sides of the pixels of a mask (H, W), of parts and of holes.

    A point lies in as odd a number of loops as its pixel is set.
    """
    padded = np.pad(mask != 0, 1).astype(np.int8)
    across, down = np.diff(padded, axis=1)[1:-1], np.diff(padded, axis=0)[:, 1:-1]
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # With the mask on the right: sides lead down on its right, up on its left, and so on.
    for sides, value, start, end in (
        (across, 1, (1, 0), (0, 0)),
        (across, -1, (0, 0), (1, 0)),
        (down, 1, (0, 0), (0, 1)),
        (down, -1, (0, 1), (0, 0)),
    ):
        for y, x in np.argwhere(sides == value).tolist():
            key = (y + start[0], x + start[1])
            following.setdefault(key, []).append((y + end[0], x + end[1]))
    loops = []
    while following:
        first = point = next(iter(following))
        loop = []
        while True:
            loop.append(point)
            ends = following[point]
            after = ends.pop()
            if not ends:
                del following[point]
            point = after
            if point == first:
                break
        loops.append(_corners(np.array(loop, dtype=np.float64)[:, ::-1]))
    return loops


def join(parts: list[Points]) -> Points:
    """One polygon of several, each tied to those before where they are nearest."""
    whole = parts[0]
    for part in parts[1:]:
        nearest, of_part = _nearest(whole, part)
        whole = np.concatenate(
            [whole[: nearest + 1], part[of_part:], part[: of_part + 1], whole[nearest:]]
        )
    return whole


def _nearest(whole: Points, part: Points) -> tuple[int, int]:
    best = (np.inf, 0, 0)
    for number, point in enumerate(part):
        distances = ((whole - point) ** 2).sum(axis=1)
        nearest = int(distances.argmin())
        best = min(best, (float(distances[nearest]), nearest, number))
    return best[1], best[2]


def _corners(loop: Points) -> Points:
    """A loop without the points that lie on a straight line."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    return np.asarray(loop[(before != after).any(axis=1)])


def _covers(polygon: Points, labeled: LabeledObject, size: tuple[int, int]) -> bool:
    """Whether one polygon covers nearly the pixels of an object."""
    (rle,) = pycocotools.mask.frPyObjects([polygon.ravel()], *size)
    return float(pycocotools.mask.iou([rle], [labeled.rle(size)], [0])[0, 0]) > 0.99
