from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mrcnn_lightning.app.cli import app
from mrcnn_lightning.data.band_statistics import band_statistics
from mrcnn_lightning.data.bands import RGB, ImageFormat
from mrcnn_lightning.inference.stretching import as_rgb
from mrcnn_lightning.user_error import UserError
from tests.conftest import build_model, compose, make_batch
from tests.data.five_bands import five_bands, write_five_bands

RNG = np.random.default_rng(0)
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SHORT = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
SHORT += ["trainer.num_sanity_val_steps=0", "data.num_workers=0"]
PICTURE = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)


def write_tiff(path: Path, values: np.ndarray) -> None:
    """By GDAL, compressed as satellites' images are."""
    rasterio = pytest.importorskip("rasterio")
    values = values[..., None] if values.ndim == 2 else values
    shape = {"height": values.shape[0], "width": values.shape[1], "count": values.shape[2]}
    options = {"driver": "GTiff", "compress": "lzw", "dtype": values.dtype.name, **shape}
    with rasterio.open(path, "w", **options) as file:
        file.write(values.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["npy", "tif", "png"])
def test_three_channels_are_rgb_in_any_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, PICTURE)
    elif suffix == "tif":
        write_tiff(path, PICTURE)
    else:
        Image.fromarray(PICTURE).save(path)
    image = RGB.read(path, size=(12, 20))
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0), PICTURE)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 16])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("order", ["HWC", "CHW", "tif"])
def test_numbers_are_those_of_the_file(
    tmp_path: Path, order: str, dtype: str, channels: int
) -> None:
    values = RNG.integers(0, 255 if dtype == "uint8" else 65535, (9, 17, channels)).astype(dtype)
    path = tmp_path / ("a.tif" if order == "tif" else "a.npy")
    if order == "tif":
        write_tiff(path, values)
    else:
        np.save(path, values if order == "HWC" else values.transpose(2, 0, 1))
    image = ImageFormat(channels, dtype).read(path, size=(9, 17))  # type: ignore[arg-type]
    assert image.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert np.array_equal(image.permute(1, 2, 0), values)


def test_grey_png_of_16_bits_keeps_them(tmp_path: Path) -> None:
    values = RNG.integers(0, 65535, (9, 17)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(ImageFormat(1, "uint16").read(tmp_path / "a.png")[0], values)


def test_coloured_png_of_16_bits_keeps_them(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    values = RNG.integers(0, 65535, (9, 17, 3)).astype(np.uint16)
    shape = {"height": 9, "width": 17, "count": 3, "dtype": "uint16"}
    with rasterio.open(tmp_path / "a.png", "w", driver="PNG", **shape) as file:
        file.write(values.transpose(2, 0, 1))
    image = ImageFormat(3, "uint16").read(tmp_path / "a.png")
    assert np.array_equal(image.permute(1, 2, 0), values)


def test_what_is_no_number_becomes_0(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[np.nan, 1.5], [np.inf, -2]], dtype=np.float32))
    image = ImageFormat(1, "float32").read(tmp_path / "a.npy")
    assert image[0].tolist() == [[0, 1.5], [0, -2]]


def test_another_format_and_another_size_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", five_bands(PICTURE))
    with pytest.raises(UserError, match=r"a\.npy has 5 channels of uint16, and data\.channels=4 "):
        ImageFormat(4, "uint16").read(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"a\.npy is 20 x 12 pixels, its annotations say 10 x 12"):
        ImageFormat(5, "uint16").read(tmp_path / "a.npy", size=(12, 10))
    (tmp_path / "b.npy").write_text("no array")
    with pytest.raises(UserError, match=r"cannot read the image .*b\.npy"):
        ImageFormat(5, "uint16").read(tmp_path / "b.npy")


@pytest.mark.parametrize("override", ["data.channels=17", "data.channels=0", "data.dtype=int8"])
def test_values_out_of_range_are_named(override: str) -> None:
    key, _, value = override.partition("=")
    options = {"channels": 3, "dtype": "uint8", key.removeprefix("data."): value}
    with pytest.raises(UserError, match=override):
        ImageFormat(int(options["channels"]), options["dtype"]).require_known()  # type: ignore


def test_statistics_are_those_of_all_pixels_together(tmp_path: Path) -> None:
    images = [RNG.normal(1e6, 3, (4 + number, 20, 2)).astype(np.float32) for number in range(3)]
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image)
    paths = sorted(tmp_path.glob("*.npy"))
    mean, std = band_statistics(paths, ImageFormat(2, "float32"))
    pixels = np.concatenate([image.reshape(-1, 2) for image in images]).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-9)


def test_bands_are_stretched_to_a_picture() -> None:
    image = torch.arange(100.0).view(1, 10, 10) * torch.tensor([1.0, 5, -2, 0])[:, None, None]
    picture = as_rgb(image, [2, 3, 4])
    assert picture.shape == (3, 10, 10) and picture.dtype == torch.uint8
    assert picture[:2, 0, 0].tolist() == [0, 255] and picture[:2, -1, -1].tolist() == [255, 0]
    assert torch.equal(as_rgb(image[:2])[0], as_rgb(image[:2])[2])  # grey
    rgb = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    assert as_rgb(rgb) is rgb
    with pytest.raises(UserError, match=r"bands=\[5\]: .* between 1 and 4"):
        as_rgb(image, [5])


def test_257_times_the_numbers_give_the_same_losses_and_detections() -> None:
    small = ["model=mask_rcnn_slim", "backbone=resnet18_slim"]
    batch = make_batch([(64, 60)], [[[8.0, 8, 40, 40]]], [[1]])
    expected = build_model(*small).eval()
    mean, std = ([257 * value for value in part] for part in (IMAGENET_MEAN, IMAGENET_STD))
    scaled = [f"backbone.pixels.mean={mean}", f"backbone.pixels.std={std}", "data.dtype=uint16"]
    found = build_model(*small, *scaled).eval()
    found.load_state_dict(expected.state_dict())
    wide = make_batch([(64, 60)], [[[8.0, 8, 40, 40]]], [[1]])
    wide.images = wide.images.float() * 257
    assert (expected.normalize(batch) - found.normalize(wide)).abs().max() < 1e-6
    losses, others = expected.loss(batch), found.loss(wide)
    for name, loss in losses.items():
        torch.testing.assert_close(others[name], loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.predict(wide).boxes, expected.predict(batch).boxes)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.channels=5"], r"pixels.mean has 3 numbers, and images have data.channels=5"),
        (
            ["data.channels=1", "backbone.pixels.mean=[9]"],
            r"pixels.std has 3 numbers, and images have data.channels=1",
        ),
        (["backbone.pixels.std=[1,0,1]"], "a deviation is more than 0"),
        (
            [
                "data.channels=1",
                "backbone.pixels={mean:[9],std:[1],channel_order:BGR}",
            ],
            "channel_order=BGR is of three channels",
        ),
    ],
)
def test_means_and_deviations_are_one_a_channel(overrides: list[str], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        build_model("model=mask_rcnn_slim", "backbone=resnet18_slim", *overrides)


def test_transforms_of_colour_want_rgb() -> None:
    jitter = "data.train_transforms=[{_target_: torchvision.transforms.v2.ColorJitter}]"
    data = compose("data.channels=5", jitter).data
    with pytest.raises(Exception, match=r"has ColorJitter, a transform of RGB.* data.channels=5"):
        hydra.utils.instantiate(data, _convert_="all", with_masks=True)


def test_five_bands_are_measured_learnt_and_predicted(
    shapes_root: Path,
    tiny: Callable[..., list[str]],
    run_main: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    root = write_five_bands(shapes_root, tmp_path / "bands")
    runner, cache = CliRunner(), f"--cache-dir={tmp_path}/cache"
    arguments = [f"{root}/annotations/instances_train.json", f"{root}/train", cache]
    measured = runner.invoke(app, ["data", "stats", *arguments])
    assert measured.exit_code == 0, measured.output
    overrides = measured.stdout.strip().replace("'", "").split(" ")
    assert overrides[:2] == ["data.channels=5", "data.dtype=uint16"]
    run = tmp_path / "run"
    status, output = run_main(*tiny(f"data_root={root}", *overrides, *SHORT, f"run_dir={run}"))
    assert status == 0, output[-2000:]
    checkpoint, photo = run / "checkpoints" / "last.ckpt", next((root / "val").iterdir())
    shown = ["--out", f"{tmp_path}/out", "--device", "cpu"]
    found = runner.invoke(app, ["predict", str(checkpoint), str(photo), *shown, "--bands", "5,4,1"])
    assert found.exit_code == 0, found.output
    assert Image.open(tmp_path / "out" / f"{photo.name}.png").mode == "RGB"
    jpeg = tmp_path / "a.jpg"
    Image.fromarray(PICTURE).save(jpeg)
    refused = runner.invoke(app, ["predict", str(checkpoint), str(jpeg), *shown])
    assert refused.exit_code == 1 and "has 3 channels of uint8" in refused.output
