import json
from pathlib import Path

import pytest
from PIL import Image

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.headers import check_images


def image_set(folder: Path, sizes: list[tuple[int, int]]) -> Annotations:
    """Images 0.jpg and so on of some heights and widths, annotated as they are."""
    images = []
    for number, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(folder / f"{number}.jpg")
        name = {"id": number + 1, "file_name": f"{number}.jpg"}
        images.append(name | {"height": height, "width": width})
    file = folder / "set.json"
    file.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "thing"}]}))
    return Annotations.load(file, cache_dir=folder / "cache")


def check(annotations: Annotations, folder: Path) -> None:
    check_images(
        annotations,
        images=("data.train_images", str(folder)),
        json="data.train_json=set.json",
        cache_dir=folder / "cache",
    )


def test_images_of_other_sizes_are_found_before_training(tmp_path: Path) -> None:
    annotations = image_set(tmp_path, [(20, 30), (20, 30), (20, 30)])
    check(annotations, tmp_path)
    Image.new("RGB", (31, 20)).save(tmp_path / "1.jpg")
    (tmp_path / "2.jpg").write_text("hello")
    with pytest.raises(
        ValueError,
        match=r"^2 of 3 images of data.train_images=\S+ are not as data.train_json=set.json says "
        r"\(correct .*\): 1.jpg is 31 x 20 pixels, annotated as 30 x 20, 2.jpg is not an image$",
    ):
        check(annotations, tmp_path)
    (tmp_path / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images are missing from data.train_images=.*: 0"):
        check(annotations, tmp_path)


@pytest.mark.parametrize(("orientation", "fits"), [(1, False), (3, False), (6, True), (8, True)])
def test_an_image_on_its_side_is_annotated_upright_or_as_stored(
    tmp_path: Path, orientation: int, fits: bool
) -> None:
    annotations = image_set(tmp_path, [(20, 30)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size in ((30, 20), (20, 30)):
        Image.new("RGB", size).save(tmp_path / "0.jpg", exif=exif)
        if size == (30, 20) or fits:
            check(annotations, tmp_path)
            continue
        with pytest.raises(ValueError, match="0.jpg is 20 x 30 pixels, annotated as 30 x 20"):
            check(annotations, tmp_path)


def test_files_that_were_checked_are_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = image_set(tmp_path, [(20, 30)] * 300)
    check(annotations, tmp_path)
    opened, really = [], Image.open

    def noted(path: Path) -> Image.Image:
        opened.append(path.name)
        return really(path)

    monkeypatch.setattr(Image, "open", noted)
    check(annotations, tmp_path)
    assert not opened
    Image.new("RGB", (30, 20)).save(tmp_path / "299.jpg", quality=10)
    check(annotations, tmp_path)
    assert sorted(opened) == sorted(f"{number}.jpg" for number in range(300))
