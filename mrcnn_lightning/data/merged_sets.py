"""Several COCO-format sets as one, and classes by other names.

N images, O objects of all images, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mrcnn_lightning.user_error import UserError

# New name of a class by its old one; None leaves the class out.
Classes = Mapping[str, str | None]


def merged(parts: Sequence[dict[str, Any]], classes: Classes) -> dict[str, Any]:
    """Packed files as one packed file, in their order.

    Classes are the same where their names are. Category ids stay if they do not contradict each
    other, or else become 1..K in the order in which the files have the classes; so do image ids.

    Args:
        parts: see `pack_coco_json`.
        classes: other names, which may be the same for several classes.

    Returns:
        Such a file, with `set_ends`: the images up to the end of each set. Objects of a class that
        is left out are gone, and with them LVIS's lists.

    Raises:
        UserError: no class is left.
    """
    ids: dict[str, int] = {}
    for part in parts:
        for old, category in zip(part["class_names"], part["category_ids"], strict=True):
            new = classes.get(old, old)
            if new is not None:
                ids.setdefault(new, category)
    if not ids:
        raise UserError("data.classes leaves out every class")
    if len(set(ids.values())) < len(ids):
        ids = {name: label for label, name in enumerate(ids, start=1)}
    ids = dict(sorted(ids.items(), key=lambda name_and_id: name_and_id[1]))
    labels = {name: label for label, name in enumerate(ids, start=1)}
    relabelled = [_relabelled(part, classes, labels) for part in parts]
    image_ids = torch.cat([part["image_ids"] for part in parts])
    if len(image_ids.unique()) < len(image_ids):
        image_ids = torch.arange(1, len(image_ids) + 1)
    left_out: dict[str, int] = {}
    for part in parts:
        for reason, num in part["left_out"].items():
            left_out[reason] = left_out.get(reason, 0) + num
    joined = {key: torch.cat([part[key] for part in relabelled]) for key in relabelled[0]}
    return {
        **{key: value.cumsum(0) if "_ends" in key else value for key, value in joined.items()},
        "class_names": list(ids),
        "category_ids": list(ids.values()),
        "image_ids": image_ids,
        "is_annotated": all(part["is_annotated"] for part in parts),
        "without_mask": _without_mask(parts, joined),
        "left_out": left_out,
        "odd_areas": sum(part["odd_areas"] for part in parts),
        "has_id_0": any(part["has_id_0"] for part in parts),
        "set_ends": torch.tensor([len(part["image_ids"]) for part in parts]).cumsum(0),
    }


def _without_mask(parts: Sequence[dict[str, Any]], joined: Mapping[str, Tensor]) -> list[int]:
    """Ids of objects without a segmentation; none if the classes of all of those are left out."""
    lacks = (joined["polygon_ends"] == 0) & (joined["rle_ends"] == 0) & ~joined["crowd"]
    return [each for part in parts for each in part["without_mask"]] if lacks.any() else []


def _relabelled(
    part: dict[str, Any], classes: Classes, labels: Mapping[str, int]
) -> dict[str, Tensor]:
    """The tensors of a file with new labels, without the objects of classes that are left out.

    Where a file says how far something reaches (`..._ends`), this says how long it is.
    """
    lengths = {
        key: value.diff(prepend=value.new_zeros(1))
        for key, value in part.items()
        if key in ("name_ends", "object_ends", "rle_ends", "polygon_ends", "point_ends")
    }
    names = [classes.get(name, name) for name in part["class_names"]]
    table = torch.tensor([0, *(0 if name is None else labels[name] for name in names)])
    new = table[part["labels"]]
    kept = new > 0
    polygons = kept.repeat_interleave(lengths["polygon_ends"])
    images = torch.arange(len(part["image_ids"])).repeat_interleave(lengths["object_ends"])
    return {
        "image_sizes": part["image_sizes"],
        "names": part["names"],
        "name_ends": lengths["name_ends"],
        "object_ends": torch.bincount(images[kept], minlength=len(part["image_ids"])),
        "labels": new[kept],
        **{key: part[key][kept] for key in ("boxes", "areas", "crowd")},
        "rles": part["rles"][kept.repeat_interleave(lengths["rle_ends"])],
        "rle_ends": lengths["rle_ends"][kept],
        "polygon_ends": lengths["polygon_ends"][kept],
        "point_ends": lengths["point_ends"][polygons],
        "points": part["points"][polygons.repeat_interleave(lengths["point_ends"])],
    }
