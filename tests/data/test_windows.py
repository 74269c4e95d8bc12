from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from PIL import Image
from torchvision.ops import box_area, clip_boxes_to_image

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.bands import RGB
from mrcnn_lightning.data.window_reader import WindowReader
from mrcnn_lightning.data.windows import Cut, Windows
from mrcnn_lightning.user_error import UserError
from tests.data.test_bands import SHORT, write_tiff


@pytest.mark.parametrize("size", [(40, 40), (41, 100), (7, 300), (1000, 64)])
def test_windows_cover_the_image_and_overlap(size: tuple[int, int]) -> None:
    windows = Windows(size=40, overlap=10, min_visible=0.5)
    covered = np.zeros(size, dtype=int)
    for top, left, height, width in windows.places(*size):
        assert (height, width) == (min(40, size[0]), min(40, size[1]))
        covered[top : top + height, left : left + width] += 1
        assert top + height <= size[0] and left + width <= size[1]
    assert covered.min() >= 1
    # Whatever is no larger than the overlap is whole in a window.
    for y in range(0, size[0] - 9, 3):
        for x in range(0, size[1] - 9, 3):
            assert any(
                top <= y and y + 10 <= top + height and left <= x and x + 10 <= left + width
                for top, left, height, width in windows.places(*size)
            )


@pytest.mark.parametrize("min_visible", [0.0, 0.6])
def test_objects_are_what_a_window_shows(
    shapes_root: Path, tmp_path: Path, min_visible: float
) -> None:
    file = shapes_root / "annotations" / "instances_train.json"
    whole = Annotations.load(file, cache_dir=tmp_path)
    cut = Windows(size=40, overlap=8, min_visible=min_visible).cut(whole, str(tmp_path))
    found = cut.annotations
    windows = iter(range(len(found)))
    for image_id in whole.image_ids.tolist():
        truth = whole.ground_truth([image_id], of_masks=True)["annotations"]
        boxes = whole.objects(whole.image_ids.tolist().index(image_id)).boxes
        masks = [pycocotools.mask.decode(entry["segmentation"]) for entry in truth]
        for _ in range(4):
            window = next(windows)
            top, left, height, width = cut.places[window].tolist()
            moved = boxes - torch.tensor([left, top] * 2)
            shown = box_area(clip_boxes_to_image(moved, (height, width))) / box_area(moved)
            kept = [
                number
                for number, share in enumerate(shown.tolist())
                if share > 0 and (share >= min_visible or truth[number]["iscrowd"])
            ]
            expected = [
                (mask[top : top + height, left : left + width], truth[number])
                for number, mask in enumerate(masks)
                if number in kept
            ]
            expected = [each for each in expected if each[0].any()]
            ours = found.ground_truth([window + 1], of_masks=True)["annotations"]
            assert len(ours) == len(expected)
            for entry, (mask, original), box in zip(
                ours, expected, found.objects(window).boxes, strict=True
            ):
                assert np.array_equal(pycocotools.mask.decode(entry["segmentation"]), mask)
                assert entry["category_id"] == original["category_id"]
                assert entry["iscrowd"] == original["iscrowd"]
                rows, columns = np.nonzero(mask)
                pixels = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                if min_visible:  # slivers have an outline, but hardly a pixel
                    assert np.abs(box.numpy() - pixels).max() <= 1.5
                if mask.sum() < pycocotools.mask.area(original["segmentation"]):
                    assert entry["area"] == mask.sum()
    assert next(windows, None) is None


@pytest.mark.parametrize("suffix", ["npy", "tif", "png", "grey.tif"])
def test_windows_of_files_are_those_of_whole_images(tmp_path: Path, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, pixels)
    elif suffix == "tif":
        write_tiff(path, pixels)
    else:
        pixels = pixels[..., :1].repeat(3, axis=2) if suffix == "grey.tif" else pixels
        Image.fromarray(pixels[..., 0] if suffix == "grey.tif" else pixels).save(path)
    places = torch.tensor([[0, 0, 32, 32], [18, 38, 32, 32]])
    sizes = torch.tensor([[50, 70]] * 2)
    cut = Cut(annotations=None, places=places, whole_sizes=sizes)  # type: ignore[arg-type]
    reader = WindowReader(cut, image_format=RGB, cache_dir=str(tmp_path))
    whole = RGB.read(path)
    for index, (top, left, height, width) in enumerate(places.tolist()):
        expected = whole[:, top : top + height, left : left + width]
        assert torch.equal(reader.read(path, index), expected)
    is_decoded = suffix in ("png", "grey.tif")
    assert len(list(tmp_path.glob("decoded/*.npy"))) == int(is_decoded)


@pytest.mark.parametrize(
    "values", [{"size": 0}, {"overlap": 64}, {"overlap": -1}, {"min_visible": 1.5}]
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    options = {"size": 64, "overlap": 8, "min_visible": 0.3} | values
    with pytest.raises(UserError, match=f"data.windows.{next(iter(values))}={values.popitem()[1]}"):
        Windows(**options)  # type: ignore[arg-type]


def test_windows_are_learnt_and_evaluated(
    tiny: Callable[..., list[str]], run_main: Callable[..., tuple[int, str]]
) -> None:
    chosen = ["data/windows=grid", "data.windows.size=40", "data.windows.overlap=8", *SHORT]
    status, output = run_main(*tiny(*chosen, "run_dir=run"))
    assert status == 0 and "96 images" in output, output[-2000:]
    status, output = run_main(
        *tiny(*chosen, "stage=predict", "ckpt_path=run/checkpoints/last.ckpt")
    )
    assert status == 1 and "leave out data/windows" in output
