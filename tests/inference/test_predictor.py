from pathlib import Path

import pytest
import torch
from PIL import Image

from mrcnn_lightning.inference import Predictor
from mrcnn_lightning.ops.masks import decode_masks


@pytest.fixture
def photos(shapes_root: Path) -> list[Path]:
    return sorted((shapes_root / "val").iterdir())


def test_three_lines_of_python(checkpoint: Path, photos: list[Path]) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    results = predictor(photos)
    assert len(results) == len(photos)
    assert sum(len(result.labels) for result in results) > 10
    for number, (path, found) in enumerate(zip(photos, results, strict=True), start=1):
        width, height = Image.open(path).size
        assert found.image_id == number and found.size == (height, width)
        assert found.boxes.shape == (len(found.labels), 4) and found.rles is not None
        assert (found.scores[:-1] >= found.scores[1:]).all()
        if len(found.labels):
            assert found.boxes[:, 2].max() <= width and found.boxes[:, 3].max() <= height
        masks = decode_masks(found.rles, found.size)
        for mask, (x1, y1, x2, y2) in zip(masks, found.boxes.tolist(), strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            if len(rows):  # a mask stays within its box, but for a pixel of its border
                assert rows.min() >= y1 - 3 and rows.max() <= y2 + 3
                assert columns.min() >= x1 - 3 and columns.max() <= x2 + 3


def test_batches_change_nothing(checkpoint: Path, photos: list[Path]) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    for one, other in zip(predictor(photos), predictor(photos, batch_size=4), strict=True):
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-2)


def test_images_are_resized_and_boxes_come_back_in_their_own_pixels(
    checkpoint: Path, photos: list[Path], tmp_path: Path
) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    found = predictor(photos)
    clearest = max(
        range(len(found)), key=lambda n: found[n].scores.max() if len(found[n].scores) else 0
    )
    image = Image.open(photos[clearest])
    image.resize((image.width * 4, image.height * 4), Image.Resampling.LANCZOS).save(
        tmp_path / "large.png"
    )
    small, (large,) = found[clearest], predictor([tmp_path / "large.png"])
    assert len(small.labels) and large.size == (small.size[0] * 4, small.size[1] * 4)
    best = small.boxes[0] * 4
    assert (large.boxes - best).abs().amax(1).min() < 8


def test_a_file_that_is_no_image_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read the image .*text.jpg: not an image"):
        Predictor.from_checkpoint(checkpoint, device="cpu")([tmp_path / "text.jpg"])
