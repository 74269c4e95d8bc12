import struct
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from mrcnn_lightning.data import images
from mrcnn_lightning.data.images import read_image


@pytest.fixture
def picture() -> Image.Image:
    ramp = np.linspace(0, 255, 40 * 60 * 3).reshape(40, 60, 3)
    return Image.fromarray(ramp.astype(np.uint8))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_modes(picture: Image.Image, tmp_path: Path, mode: str) -> None:
    name = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    converted = picture.convert(mode)
    converted.save(name)
    image = read_image(name)
    assert image.shape == (3, 40, 60) and image.dtype == torch.uint8
    assert torch.equal(image, pixels(converted))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits(tmp_path: Path, suffix: str) -> None:
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    expected = torch.from_numpy((grey / 257).round().astype(np.uint8))
    assert torch.equal(image, expected.expand(3, -1, -1))


def grey_levels(white: float, dtype: str) -> tuple[Image.Image, torch.Tensor]:
    """A ramp from 0 to white, and what 8 bits should show of it."""
    ramp = np.linspace(0, 1, 48 * 32).reshape(32, 48)
    values = (ramp * white).astype(dtype)
    return Image.fromarray(values), torch.from_numpy(values / np.float64(white) * 255)


@pytest.mark.parametrize(
    ("white", "dtype"),
    [
        (255, "uint16"),
        (4095, "uint16"),
        (16383, "uint16"),
        (255, "int32"),
        (4095, "int32"),
        (65535, "int32"),
        (2**31 - 1, "int32"),
        (1.0, "float32"),
        (255.0, "float32"),
        (65535.0, "float32"),
        (1.25, "float32"),
        (3.25, "float32"),
    ],
)
def test_values_are_scaled_by_the_range_that_they_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, white: float, dtype: str
) -> None:
    image, expected = grey_levels(white, dtype)
    image.save(tmp_path / "a.tif")
    images._has_said = False
    for _ in range(2):
        found = read_image(tmp_path / "a.tif")
        assert (found[0] - expected).abs().max() <= 0.5 and (found == found[:1]).all()
    (warning,) = caplog.messages
    assert "a.tif" in warning and f"0 becomes black and {white:g} white" in warning


@pytest.mark.parametrize(("tag", "says"), [(341, 4095), (281, 4095), (None, None), (341, "x")])
def test_a_dark_image_is_scaled_by_what_its_file_says(
    tmp_path: Path, tag: int | None, says: int | str | None
) -> None:
    image, expected = grey_levels(900, "uint16")
    info = TiffImagePlugin.ImageFileDirectory_v2()
    if tag is not None:
        info.tagtype[tag] = TiffImagePlugin.TiffTags.ASCII if says == "x" else 3
        info[tag] = says
    image.save(tmp_path / "a.tif", tiffinfo=info)
    found = read_image(tmp_path / "a.tif")
    white = says if isinstance(says, int) else 1023
    assert (found[0] - expected * 900 / white).abs().max() <= 0.51


def test_what_a_file_says_of_black(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[1000, 1500, 2000]], dtype=np.uint16))
    image.save(tmp_path / "a.tif", tiffinfo={340: 1000, 341: 2000})
    assert read_image(tmp_path / "a.tif")[0].tolist() == [[0, 128, 255]]


def test_numbers_that_pillow_takes_for_signed(tmp_path: Path) -> None:
    values = np.array([[0, 2**31, 2**32 - 1]], dtype=np.uint32)
    Image.fromarray(values.view(np.int32)).save(tmp_path / "a.tif")
    signed, unsigned = (struct.pack("<2HIH", 339, 3, 1, kind) for kind in (2, 1))
    content = (tmp_path / "a.tif").read_bytes()
    assert signed in content
    (tmp_path / "a.tif").write_bytes(content.replace(signed, unsigned))
    assert read_image(tmp_path / "a.tif")[0].tolist() == [[0, 128, 255]]


def test_colour_that_uses_few_of_16_bits_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixel = struct.pack(">3H", 4095, 2000, 0)
    (tmp_path / "a.png").write_bytes(png(b"\0" + pixel, bits=16))
    images._has_said = False
    assert read_image(tmp_path / "a.png").flatten().tolist() == [15, 7, 0]
    (warning,) = caplog.messages
    assert "a.png has 16 bits a channel of which it uses the lower ones" in warning


def png(rows: bytes, *, bits: int) -> bytes:
    """A file of one pixel of three channels, which Pillow cannot write with 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">2I5B", 1, 1, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b"")


def test_numbers_below_zero_and_numbers_that_are_none(tmp_path: Path) -> None:
    values = np.array([[-1.0, 0, 1], [np.nan, np.inf, 0.5]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0].tolist() == [[0, 128, 255], [128, 128, 191]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(picture: Image.Image, tmp_path: Path, orientation: int) -> None:
    """Each of the eight ways that a camera may be held shows the same picture."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = picture.transpose(undo[orientation]) if orientation in undo else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.png"), pixels(picture))
    assert torch.equal(read_image(tmp_path / "a.png", size=(40, 60)), pixels(picture))
    if stored.size != picture.size:  # annotations that were made for the pixels as they are stored
        assert torch.equal(read_image(tmp_path / "a.png", size=(60, 40)), pixels(stored))


def test_16_bits_turned(tmp_path: Path) -> None:
    grey = np.arange(0, 65536, 32, dtype=np.uint16).reshape(32, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    expected = torch.from_numpy((grey / 257).round().astype(np.uint8))
    assert torch.equal(read_image(tmp_path / "a.png")[0], expected)


def test_bad_files_are_named(picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read the image .*text.jpg: not an image"):
        read_image(tmp_path / "text.jpg")
    picture.save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cannot read the image .*cut.jpg: .*truncated"):
        read_image(tmp_path / "cut.jpg")
    with pytest.raises(ValueError, match=r"cannot read the image .*none.jpg"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ValueError, match=r"whole.jpg is 60 x 40 pixels, its annotations say 30 x"):
        read_image(tmp_path / "whole.jpg", size=(40, 30))
