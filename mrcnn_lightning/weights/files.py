"""Files of weights, from a disk or the network, read without running what they may hold."""

import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from filelock import FileLock
from torch import Tensor
from torchvision.models import WeightsEnum

from mrcnn_lightning.user_error import UserError
from mrcnn_lightning.weights.array_pickles import read_arrays

# Detectron2's short form of its own addresses.
_DETECTRON2 = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")
# What names say of a file's content: torchvision's a part of its SHA-256, Detectron2's of its MD5.
_NAMED_HASHES = (("sha256", r"-([0-9a-f]{8,64})\.\w+$"), ("md5", r"_([0-9a-f]{6})\.pkl$"))


def read_file(path: str | Path) -> dict[str, Any]:
    """What a checkpoint file holds; no code in it is run.

    Args:
        path: PyTorch's format, or a pickle of NumPy arrays (Detectron2's `.pkl`).

    Raises:
        UserError: there is no such file, it is damaged, or it holds more than plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"no such file: {path} (weights are a file, an address, or a name of torchvision's, "
            "such as IMAGENET1K_V1 or MaskRCNN_ResNet50_FPN_Weights.COCO_V1)"
        )
    try:
        content = (
            read_arrays(path.read_bytes())
            if path.suffix == ".pkl"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{path} is damaged, or holds objects other than arrays and plain values, which are "
            f"not loaded because they could run code{f': {refused[1]}' if refused else ''}"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is damaged or no file of weights: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights by name")
    return content


def read_weights(weights: str, *, key: str, architecture: str | None = None) -> dict[str, Any]:
    """The content of weights: a file, an address, or a name of torchvision's.

    Args:
        weights: such as `model.pth`, `https://...` (with `#sha256=...` to be checked),
            `detectron2://...`, `MaskRCNN_ResNet50_FPN_Weights.COCO_V1`, or `IMAGENET1K_V1`.
        key: of the configuration, for messages.
        architecture: torchvision's name of the network that a short name is of.

    Raises:
        UserError: they cannot be had, or see `read_file`.
    """
    if re.match(r"\w+://", weights):
        file = _download(weights, key)
        try:
            return read_file(file)
        except UserError as error:
            file.unlink()
            raise UserError(
                f"{key}={weights}: {error}. It is removed, so that the next try fetches it anew"
            ) from error
    if re.fullmatch(r"\w+_Weights\.\w+", weights):
        try:
            return _published(torchvision.models.get_weight(weights), key, weights)
        except (AttributeError, KeyError, ValueError) as error:
            if isinstance(error, UserError) and "download" in str(error):
                raise
            raise UserError(f"{key}={weights} is no weights of torchvision's: {error}") from error
    if architecture is not None and re.fullmatch(r"[A-Z0-9_]+", weights):
        known = torchvision.models.get_model_weights(architecture)
        if weights not in known.__members__:
            names = ", ".join(known.__members__)
            raise UserError(
                f"{key}={weights} is no weights of torchvision's {architecture}: {names}"
            )
        return _published(known[weights], key, weights)
    return read_file(weights)


def published_entry(weights: str, architecture: str) -> WeightsEnum | None:
    """Torchvision's entry of weights that are called as it calls them, or as their file there."""
    try:
        known = torchvision.models.get_model_weights(architecture)
    except ValueError:  # a network of our own
        return None
    name = weights.removeprefix(f"{known.__name__}.")
    if name in known.__members__:  # DEFAULT, which is another's second name, too
        return known[name]
    file = weights.partition("#")[0].rpartition("/")[2]
    return next((entry for entry in known if file == entry.url.rpartition("/")[2]), None)


def _published(entry: WeightsEnum, key: str, weights: str) -> dict[str, Tensor]:
    try:
        return dict(entry.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise _no_download(key, weights, entry.url, error) from error


def _download(address: str, key: str) -> Path:
    """The file of an address, fetched once, with the content that it should have."""
    url, _, wanted = address.replace(*_DETECTRON2).partition("#")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    digest = hashlib.blake2b(url.encode(), digest_size=4).hexdigest()
    target = folder / f"{digest}_{url.rpartition('/')[2]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            if not target.exists():
                unfinished = target.with_name(f"{target.name}.unfinished")
                torch.hub.download_url_to_file(url, str(unfinished), progress=False)
                _check_hash(unfinished, url, wanted)
                unfinished.replace(target)
            _check_hash(target, url, wanted)
    except (OSError, RuntimeError) as error:
        raise _no_download(key, address, url, error) from error
    return target


def _check_hash(file: Path, url: str, wanted: str) -> None:
    """Compare a file with what its address says of it, and remove it if it differs.

    Raises:
        UserError: it is another file.
    """
    hashes = [(kind, found[1]) for kind, name in _NAMED_HASHES if (found := re.search(name, url))]
    if wanted:
        kind, _, value = wanted.partition("=")
        if kind not in ("sha256", "md5") or not value:
            raise UserError(f"{url}#{wanted}: say #sha256=... or #md5=...")
        hashes = [(kind, value)]
    for kind, value in hashes:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, kind).hexdigest()
        if not digest.startswith(value.lower()):
            file.unlink()
            raise UserError(
                f"{url} should have a {kind} of {value}..., what came has {digest}: it is removed; "
                "the download was damaged, the file is another, or its name holds no hash: then "
                "say #sha256=... after the address"
            )


def _no_download(key: str, weights: str, url: str, error: Exception) -> UserError:
    nothing = " backbone.trainable_stages=5 backbone.norm=bn" if key == "backbone.weights" else ""
    return UserError(
        f"cannot download {key}={weights} from {url}: {error}. Without a network, fetch that file "
        f"elsewhere and set {key}=/path/to/it; to start from nothing, set {key}=null{nothing}"
    )
