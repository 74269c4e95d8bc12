"""COCO 2017 from its own server."""

import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch.hub import download_url_to_file
from torchvision.datasets.utils import calculate_md5, extract_archive

from mrcnn_lightning.user_error import UserError


class Archive(NamedTuple):
    """A file of the server."""

    path: str
    size: int  # bytes
    md5: str


# images.cocodataset.org is a bucket of S3's, whose own name alone has a certificate.
_SERVER = "https://s3.amazonaws.com/images.cocodataset.org"
# What each archive holds, and the archive as it was published.
_ARCHIVES = {
    "annotations": Archive(
        "annotations/annotations_trainval2017.zip", 252907541, "f4bbac642086de4f52a3fdda2de5fa2c"
    ),
    "val2017": Archive("zips/val2017.zip", 815585330, "442b8da7639aecaf257c1dceb8ba8c80"),
    "train2017": Archive("zips/train2017.zip", 19336861798, "cced6f7f71b7629ddf16f17bbcfab6b2"),
}


def download_coco(
    folder: str | Path, *, server: str = _SERVER, archives: Mapping[str, Archive] = _ARCHIVES
) -> None:
    """Fetch and unpack training and validation images and annotations; what is there stays.

    Each part gets its name once it is whole, so a download that was cut off can be started again.

    Args:
        folder: gets `annotations/`, `train2017/` and `val2017/`.
        server: that has COCO's archives.
        archives: by what they hold.

    Raises:
        UserError: the folder cannot be made, or an archive cannot be had, or is not as published.
    """
    root = Path(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {root} cannot be made: {error}") from error
    for name, archive in archives.items():
        if (root / name).exists():
            print(f"{root / name} is there already")
            continue
        url = f"{server}/{archive.path}"
        file = root / Path(archive.path).name
        unfinished = root / f".{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            if not file.exists():
                download_url_to_file(url, str(file))
            _require_published(file, archive, url)
            print(f"unpacking {file}")
            extract_archive(str(file), str(unfinished))
        except OSError as error:
            raise UserError(
                f"cannot download {url}: {error}; fetch it by another way, unpack it in {root}, "
                f"and give data_root={root}"
            ) from error
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            file.unlink()
            raise UserError(f"{file} from {url} was damaged ({error}): try again") from error
        (unfinished / name).rename(root / name)
        unfinished.rmdir()
        file.unlink()


def _require_published(file: Path, archive: Archive, url: str) -> None:
    size = file.stat().st_size
    if size != archive.size:
        difference = f"it has {size:,} bytes, not {archive.size:,}"
    elif (md5 := calculate_md5(str(file))) != archive.md5:
        difference = f"its MD5 is {md5}, not {archive.md5}"
    else:
        return
    file.unlink()
    raise UserError(
        f"{file} from {url} is not the file that was published ({difference}): try again"
    )
