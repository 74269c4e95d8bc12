"""COCO-format files taken apart and put together, with every key that they have."""

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mrcnn_lightning.data.coco_json import pack_coco_json
from mrcnn_lightning.data.lvis import LISTS, name_entries_by_url
from mrcnn_lightning.data.near_copies import near_copies
from mrcnn_lightning.data.stratification import stratify
from mrcnn_lightning.user_error import UserError

Content = dict[str, Any]

_OWN_KEYS = ("info", "licenses", "images", "annotations", "categories")


def read_content(file: Path) -> Content:
    """A COCO-format file, checked; in LVIS's format, its images get their `file_name`.

    Raises:
        UserError: see `pack_coco_json`.
    """
    pack_coco_json(file)
    try:
        content: Content = json.loads(file.read_bytes())
    except UnicodeDecodeError as error:  # in a key that is not looked at there
        raise UserError(f"{file} is no text in UTF-8: save it as such") from error
    name_entries_by_url(content["images"])
    return content | {"annotations": content.get("annotations") or []}


def write_content(content: Content, file: Path) -> None:
    """A COCO-format file; what was there before stays until the new one is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    unfinished.replace(file)


def split(
    content: Content, images: Path, shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, Content]:
    """Deal images to parts by their classes; near-copies stay together.

    Args:
        content: of a file.
        images: the folder of images.
        shares: of the parts, by their names; their sum is 1.
        seed: decides between equals.

    Raises:
        UserError: images are missing, or a part has none.
    """
    paths = [images / image["file_name"] for image in content["images"]]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} images are missing from {images}, {missing[0].name} "
            "for one: correct --images"
        )
    parts = stratify(kinds_of(content), list(shares.values()), groups=near_copies(paths), seed=seed)
    found = {}
    for number, name in enumerate(shares):
        chosen = {
            image["id"]
            for image, part in zip(content["images"], parts, strict=True)
            if part == number
        }
        if not chosen:
            raise UserError(
                f"{name} would get none of {len(paths)} images: give it more than {shares[name]:g}"
            )
        found[name] = with_images(content, chosen)
    return found


def kinds_of(content: Content) -> npt.NDArray[np.bool_]:
    """Which classes are on which image, (N, K), in the order of the file."""
    rows = {image["id"]: row for row, image in enumerate(content["images"])}
    columns = {each["id"]: column for column, each in enumerate(content["categories"])}
    kinds = np.zeros((len(rows), len(columns)), dtype=bool)
    for annotation in content["annotations"]:
        kinds[rows[annotation["image_id"]], columns[annotation["category_id"]]] = True
    return kinds


def with_images(content: Content, image_ids: Collection[int]) -> Content:
    """Some images of a file and their objects."""
    return content | {
        "images": [image for image in content["images"] if image["id"] in image_ids],
        "annotations": [each for each in content["annotations"] if each["image_id"] in image_ids],
    }


def with_classes(content: Content, names: Sequence[str]) -> Content:
    """Some classes of a file, and the images on which one of them is.

    Raises:
        UserError: the file has no class of a name.
    """
    known = {category["name"]: category["id"] for category in content["categories"]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"there is no class {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    ids = {known[name] for name in names}
    kept = [each for each in content["annotations"] if each["category_id"] in ids]
    chosen = with_images(content, {each["image_id"] for each in kept})
    categories = [category for category in content["categories"] if category["id"] in ids]
    images = [_with_lists(image, {each: each for each in ids}) for image in chosen["images"]]
    return chosen | {"images": images, "annotations": kept, "categories": categories}


def with_some_images(content: Content, num_images: int, *, seed: int = 0) -> Content:
    """A random choice of images and their objects.

    Raises:
        UserError: there are fewer.
    """
    ids = [image["id"] for image in content["images"]]
    if num_images > len(ids):
        raise UserError(f"{num_images} images are wanted, there are {len(ids)}")
    chosen = np.random.default_rng(seed).permutation(len(ids))[:num_images]
    return with_images(content, {ids[number] for number in chosen})


def with_class_names(content: Content, renamed: Mapping[str, str]) -> Content:
    """Classes by other names; those that get one name become one."""
    first: dict[str, Any] = {}
    ids = {}
    for category in content["categories"]:
        name = renamed.get(category["name"], category["name"])
        ids[category["id"]] = first.setdefault(name, category | {"name": name})["id"]
    annotations = [
        each | {"category_id": ids[each["category_id"]]} for each in content["annotations"]
    ]
    images = [_with_lists(image, ids) for image in content["images"]]
    return content | {
        "images": images,
        "annotations": annotations,
        "categories": list(first.values()),
    }


def _with_lists(image: Content, ids: Mapping[Any, Any]) -> Content:
    """An image whose lists of LVIS's name categories by other ids, and only those that have one.

    Of several that become one, all must be absent for it to be absent.
    """
    lists = {key: image[key] for key in LISTS if isinstance(image.get(key), list)}
    found = {
        key: dict.fromkeys(ids[each] for each in listed if isinstance(each, int) and each in ids)
        for key, listed in lists.items()
    }
    absent = "neg_category_ids"
    if absent in found:
        others = {ids[each] for each in ids.keys() - set(lists[absent])}
        found[absent] = {each: None for each in found[absent] if each not in others}
    return image | {key: list(each) for key, each in found.items()}


def relative_to_one(
    folders: Sequence[Path], contents: Sequence[Content]
) -> tuple[Path, list[Content]]:
    """Files whose images are named from the folder that holds all of their folders, and that."""
    whole = [folder.absolute() for folder in folders]
    root = Path(os.path.commonpath(whole))
    found = []
    for folder, content in zip(whole, contents, strict=True):
        above = folder.relative_to(root)
        images = [
            image | {"file_name": (above / image["file_name"]).as_posix()}
            for image in content["images"]
        ]
        found.append(content | {"images": images})
    return root, found


def merge(contents: Mapping[str, Content]) -> tuple[Content, list[str]]:
    """One file of several; classes are matched by name.

    Ids stay where they are free, else all of that kind in a file are numbered on. Licences are
    matched by what they say. The first `info` stays, the others are listed as `merged_infos`.

    Args:
        contents: by the files' names.

    Returns:
        The content, and what is not kept, in sentences.

    Raises:
        UserError: two files have an image of one name.
    """
    merged: Content = {}
    whose: dict[str, str] = {}
    notes: list[str] = []
    for file, content in contents.items():
        for image in content["images"]:
            other = whose.setdefault(image["file_name"], file)
            if other != file:
                raise UserError(
                    f"{other} and {file} both have an image {image['file_name']}: where these are "
                    "two, give each file's folder with --images, else leave one out"
                )
        if not merged:
            merged = {key: list(v) if isinstance(v, list) else v for key, v in content.items()}
            continue
        _add(content, merged)
        notes += [
            f"{key} of {file} differs from that before and is left out"
            for key in sorted(content.keys() - set(_OWN_KEYS))
            if merged.setdefault(key, content[key]) != content[key]
        ]
    return merged, notes


def _add(content: Content, merged: Content) -> None:
    numbers = _numbered_on(content["images"], merged["images"])
    images = {image["id"]: n for image, n in zip(content["images"], numbers, strict=True)}
    numbers = _numbered_on(content["annotations"], merged["annotations"])
    classes = _matched(content["categories"], merged["categories"], lambda each: str(each["name"]))
    licenses = _licenses(content, merged)
    for image in content["images"]:
        known = image.get("license") in licenses
        more = {"license": licenses[image["license"]]} if known else {}
        new = _with_lists(image, classes) | {"id": images[image["id"]]}
        merged["images"].append(new | more)
    for number, each in zip(numbers, content["annotations"], strict=True):
        place = {
            "image_id": images[each["image_id"]],
            "category_id": classes[each["category_id"]],
        }
        merged["annotations"].append(each | {"id": number} | place)
    info = content.get("info")
    if info and merged.setdefault("info", info) != info:
        merged["merged_infos"] = [*merged.get("merged_infos", []), info]


def _numbered_on(entries: list[Content], before: list[Content]) -> list[Any]:
    """Ids of entries: their own, or where one is taken all behind those before."""
    taken = {entry.get("id") for entry in before}
    own = [entry.get("id") for entry in entries]
    if taken.isdisjoint(own) and None not in own:
        return own
    start = 1 + max((int(number) for number in taken if isinstance(number, int)), default=0)
    return list(range(start, start + len(own)))


def _licenses(content: Content, merged: Content) -> dict[Any, Any]:
    """The new ids of a file's licences, which are added where they say something new."""
    own = [each for each in content.get("licenses") or [] if "id" in each]
    if not own:
        return {}
    before = merged.setdefault("licenses", [])

    def said(each: Content) -> str:
        return json.dumps({key: each[key] for key in each if key != "id"}, sort_keys=True)

    return _matched(own, before, said)


def _matched(
    entries: list[Content], before: list[Content], key: Callable[[Content], str]
) -> dict[Any, Any]:
    """Ids of the equal entries before; new ones are added, with their own id if it is free."""
    known = {key(entry): entry["id"] for entry in before}
    taken = {entry["id"] for entry in before}
    ids = {}
    for entry in entries:
        if key(entry) not in known:
            number = entry["id"] if entry["id"] not in taken else max(taken) + 1
            before.append(entry | {"id": number})
            known[key(entry)] = number
            taken.add(number)
        ids[entry["id"]] = known[key(entry)]
    return ids
