"""The real download from a server on loopback, and what is said when there is none."""

import functools
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mrcnn_lightning.data.download import download_coco

ARCHIVES = {
    "zips/train2017.zip": "train2017/000000000009.jpg",
    "zips/val2017.zip": "val2017/000000000139.jpg",
    "annotations/annotations_trainval2017.zip": "annotations/instances_val2017.json",
}


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
    with pytest.raises(ValueError, match=r"annotations_trainval2017.zip from .* was damaged"):
        download_coco(tmp_path / "coco", server=address)
    archive.write_bytes(whole)
    download_coco(tmp_path / "coco", server=address)


def test_no_server_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cannot download http://127.0.0.1:1/.*data_root="
    ) as error:
        download_coco(tmp_path, server="http://127.0.0.1:1")
    assert "\n" not in str(error.value)
