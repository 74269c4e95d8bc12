"""Damaged and strange image files end as an image or in one sentence that names the file."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mrcnn_lightning.data.images import read_image

KINDS = {
    "a.jpg": ("JPEG", ["RGB", "L", "CMYK"]),
    "a.png": ("PNG", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16"]),
    "a.tif": ("TIFF", ["RGB", "L", "I;16", "I", "F", "CMYK"]),
    "a.webp": ("WEBP", ["RGB", "RGBA"]),
    "a.gif": ("GIF", ["P"]),
    "a.bmp": ("BMP", ["RGB", "L", "1"]),
}


def encoded(name: str, mode: str, size: tuple[int, int], orientation: int) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    grey = {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode)
    image = (
        Image.fromarray(values).convert(mode)
        if grey is None
        else Image.fromarray(values[..., 0].astype(grey))
    )
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    kind = KINDS[name][0]
    image.save(content, kind, **({} if kind in ("BMP", "GIF") else {"exif": exif}))
    return content.getvalue()


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name and a content: whole, cut off, with some bytes changed, or of another kind."""
    name = draw(st.sampled_from(sorted(KINDS)))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    mode = draw(st.sampled_from(KINDS[name][1]))
    content = bytearray(encoded(name, mode, size, draw(st.integers(0, 9))))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    end = draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    return draw(st.sampled_from(sorted(KINDS))), bytes(content[:end])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(file=files())
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata
def test_an_image_or_one_sentence(file: tuple[str, bytes], folder: Path) -> None:
    path = folder / file[0]
    path.write_bytes(file[1])
    try:
        image = read_image(path)
    except ValueError as error:
        assert str(error).startswith(f"cannot read the image {path}: ")
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.numel() > 0


def test_an_image_that_claims_to_be_huge(tmp_path: Path) -> None:
    content = bytearray(encoded("a.bmp", "RGB", (4, 4), 1))
    content[18:26] = struct.pack("<ii", 60000, 60000)
    (tmp_path / "huge.bmp").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read the image .*huge.bmp: .*pixels"):
        read_image(tmp_path / "huge.bmp")
