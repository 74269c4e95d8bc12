"""Images dealt to parts so that every part has its share of every class.

N images, K kinds (classes, and images without objects), U units that stay together, P parts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Shares are not exact; counts differ by one at least, and shares of them hardly by less.
_SAME = 1e-6
_Counts = npt.NDArray[np.float64]


def stratify(
    kinds: npt.NDArray[np.bool_],
    shares: Sequence[float],
    *,
    groups: Sequence[Sequence[int]] = (),
    seed: int = 0,
) -> npt.NDArray[np.int64]:
    """The part of each image, (N,): iterative stratification.

    Sechidis et al., "On the Stratification of Multi-label Data", 2011, algorithm 1: the rarest kind
    is dealt first, each image to the part that lacks most of that kind, then most images. A group
    is dealt as one, to wherever most of its images are lacked.

    Args:
        kinds: (N, K), which classes are on an image.
        shares: of P parts, whose sum is 1.
        groups: images that stay together; the others are alone.
        seed: decides between equals.
    """
    units = _units(len(kinds), groups)
    sizes = np.array([len(unit) for unit in units], dtype=np.float64)  # (U,)
    # An image without objects is of a kind too, so that all parts get some.
    all_kinds = np.concatenate([kinds, ~kinds.any(axis=1, keepdims=True)], axis=1)
    counts = np.stack([all_kinds[unit].sum(axis=0) for unit in units]).astype(np.float64)  # (U, K)
    wanted = np.outer(shares, counts.sum(axis=0))  # (P, K), what each part still lacks
    wanted_images = np.array(shares) * len(kinds)  # (P,)
    generator = np.random.default_rng(seed)
    is_open = np.ones(len(units), dtype=bool)
    parts = np.empty(len(kinds), dtype=np.int64)
    while is_open.any():
        kind = _rarest(counts[is_open])
        for unit in generator.permutation(np.flatnonzero(is_open & (counts[:, kind] > 0))):
            part = _most_lacking(wanted[:, kind], wanted_images, generator)
            parts[units[unit]] = part
            is_open[unit] = False
            wanted[part] -= counts[unit]
            wanted_images[part] -= sizes[unit]
    return parts


def _units(num_images: int, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    grouped = {index for group in groups for index in group}
    alone = [[index] for index in range(num_images) if index not in grouped]
    return [list(group) for group in groups] + alone


def _rarest(counts: _Counts) -> int:
    """The kind of which fewest images are left, but some."""
    left = counts.sum(axis=0)
    return int(np.where(left > 0, left, np.inf).argmin())


def _most_lacking(of_kind: _Counts, of_images: _Counts, generator: np.random.Generator) -> int:
    best = np.flatnonzero(of_kind > of_kind.max() - _SAME)
    if len(best) > 1:
        best = best[of_images[best] > of_images[best].max() - _SAME]
    return int(best[0] if len(best) == 1 else generator.choice(best))
