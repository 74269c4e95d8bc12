"""COCO 2017 from its own server."""

import shutil
import zipfile
import zlib
from pathlib import Path

from torch.hub import download_url_to_file
from torchvision.datasets.utils import extract_archive

_SERVER = "http://images.cocodataset.org"
# What each archive holds, and where the archive is.
_ARCHIVES = {
    "annotations": "annotations/annotations_trainval2017.zip",
    "val2017": "zips/val2017.zip",
    "train2017": "zips/train2017.zip",
}


def download_coco(folder: str | Path, *, server: str = _SERVER) -> None:
    """Fetch and unpack training and validation images and annotations; what is there stays.

    Each part gets its name once it is whole, so a download that was cut off can be started again.

    Args:
        folder: gets `annotations/`, `train2017/` and `val2017/`.
        server: that has COCO's archives.

    Raises:
        ValueError: an archive cannot be had, or is damaged.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    for name, archive in _ARCHIVES.items():
        if (root / name).exists():
            print(f"{root / name} is there already")
            continue
        url = f"{server}/{archive}"
        file = root / Path(archive).name
        unfinished = root / f".{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            if not file.exists():
                download_url_to_file(url, str(file))
            print(f"unpacking {file}")
            extract_archive(str(file), str(unfinished))
        except OSError as error:
            raise ValueError(
                f"cannot download {url}: {error}; fetch it by another way, unpack it in {root}, "
                f"and give data_root={root}"
            ) from error
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            file.unlink()
            raise ValueError(f"{file} from {url} was damaged ({error}): try again") from error
        (unfinished / name).rename(root / name)
        unfinished.rmdir()
        file.unlink()
