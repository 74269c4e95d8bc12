"""The real download from a server on loopback, and what is said when there is none."""

import functools
import hashlib
import http.server
import inspect
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mrcnn_lightning.data.download import Archive
from mrcnn_lightning.data.download import download_coco as download
from tests.conftest import ROOT

ARCHIVES = {
    "annotations/annotations_trainval2017.zip": "annotations/instances_val2017.json",
    "zips/val2017.zip": "val2017/000000000139.jpg",
    "zips/train2017.zip": "train2017/000000000009.jpg",
}

PUBLISHED: dict[str, Archive] = {}
download_coco = functools.partial(download, archives=PUBLISHED)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Its address, and the folder that it serves."""
    folder = tmp_path / "server"
    for archive, member in ARCHIVES.items():
        (folder / archive).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / archive, "w") as file:
            file.writestr(member, f"this is {member}")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    for archive, member in ARCHIVES.items():
        content = (folder / archive).read_bytes()
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        PUBLISHED[Path(member).parts[0]] = Archive(archive, len(content), md5)
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()


def test_all_of_coco_arrives(
    server: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, _ = server
    root = tmp_path / "coco"
    download_coco(root, server=address)
    for member in ARCHIVES.values():
        assert (root / member).read_text() == f"this is {member}"
    assert {path.name for path in root.iterdir()} == {"annotations", "train2017", "val2017"}
    capsys.readouterr()
    download_coco(root, server="http://127.0.0.1:1")  # nothing is left to fetch
    assert "train2017 is there already" in capsys.readouterr().out


def test_a_download_that_was_cut_off_goes_on(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    root = tmp_path / "coco"
    whole = (folder / "zips" / "train2017.zip").rename(tmp_path / "train2017.zip")
    with pytest.raises(ValueError, match=r"cannot download .*zips/train2017.zip: HTTP Error 404"):
        download_coco(root, server=address)
    assert (root / "val2017").is_dir() and not (root / "train2017").exists()
    whole.rename(folder / "zips" / "train2017.zip")
    download_coco(root, server=address)
    assert (root / "train2017" / "000000000009.jpg").is_file()


def test_a_damaged_archive_is_fetched_again(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    archive = folder / "annotations" / "annotations_trainval2017.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"2017.zip from .* is not the .* bytes, not .*: try again"
    ):
        download_coco(tmp_path / "coco", server=address)
    archive.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match=r"2017.zip from .* is not the .* MD5 is .*: try again"):
        download_coco(tmp_path / "coco", server=address)
    assert not (tmp_path / "coco" / archive.name).exists()
    archive.write_bytes(whole)
    download_coco(tmp_path / "coco", server=address)


def test_no_server_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cannot download http://127.0.0.1:1/.*data_root="
    ) as error:
        download(tmp_path, server="http://127.0.0.1:1")
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"the folder .*file/coco cannot be made: .*Not a dir"):
        download(tmp_path / "file" / "coco")


def test_coco_comes_encrypted_and_compromised_packages_do_not() -> None:
    server = inspect.signature(download).parameters["server"].default
    assert server.startswith("https://")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}
    assert not any(needs["lightning"].contains(bad) for bad in ("2.6.2", "2.6.3"))
    assert needs["hydra-core"].contains("1.3.7") and not needs["hydra-core"].contains("1.3.6")
