import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mrcnn_lightning import Predictor
from mrcnn_lightning.data.images import read_image
from mrcnn_lightning.data.sizing import (
    Canvas,
    CentredSquare,
    PadToMultiple,
    Resize,
    enlarged,
    shorter_side,
)
from mrcnn_lightning.results.pasting import resized_crops
from mrcnn_lightning.results.rle import decode_masks
from mrcnn_lightning.structures import Batch, Detections


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
    left_over = total = 0
    for one, other in zip(predictor(photos), predictor(photos, batch_size=4), strict=True):
        distance = (one.boxes[:, None] - other.boxes).abs().amax(2)
        distance += 1e3 * (one.labels[:, None] != other.labels)
        distance = F.pad(distance, (0, 1), value=torch.inf)  # there may be no other
        # As sets: two with nearly one score may change places, or one at the threshold be missing.
        left_over += int((distance.amin(1) > 1e-2).sum())
        left_over += abs(len(one.labels) - len(other.labels))
        total += len(one.labels)
    assert total > 10 and left_over <= total / 100


def test_images_in_memory_are_files(checkpoint: Path, photos: list[Path]) -> None:
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    expected = predictor(photos[:2], batch_size=2)
    found = predictor.predict_batch([read_image(path) for path in photos[:2]])
    for one, other in zip(found, expected, strict=True):
        assert one.image_id == other.image_id and one.rles == other.rles
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"compiled": True}])
def test_faster_predictions_are_nearly_the_same(
    options: dict[str, Any], checkpoint: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_part = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda *args, **kw: compile_part(*args, backend="aot_eager", **kw),
    )
    monkeypatch.setattr(shutil, "which", lambda name: name)  # one is needed by Inductor alone
    exact = Predictor.from_checkpoint(checkpoint, device="cpu")(photos)
    fast = Predictor.from_checkpoint(checkpoint, device="cpu", **options)(photos)
    confident = far = 0
    for one, other in zip(exact, fast, strict=True):
        for box, label in zip(one.boxes[one.scores > 0.1], one.labels, strict=False):
            confident += 1
            distance = (other.boxes - box).abs().amax(1) + 1e3 * (other.labels != label)
            far += bool(distance.min() > 1.5) if len(distance) else 1
    assert confident > 5 and far <= confident / 10


def test_a_precision_that_is_not_known(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="precision=fp8 is not one of 32, bf16"):
        Predictor.from_checkpoint(checkpoint, device="cpu", precision="fp8")


class LeftUpperQuarter(torch.nn.Module):
    """A model that always finds one thing, a quarter of the image, in the network's pixels."""

    class_names: ClassVar = ["thing"]
    paste = staticmethod(resized_crops)

    def predict(self, batch: Batch) -> Detections:
        low, high = batch.windows[:, None].split(2, dim=2)
        return Detections(
            boxes=torch.cat([low, (low + high) / 2], dim=2),
            scores=torch.ones(len(batch), 1),
            labels=torch.ones(len(batch), 1, dtype=torch.int64),
            masks=torch.ones(len(batch), 1, 28, 28),
        )


@pytest.mark.parametrize(
    ("resize", "canvas"),
    [
        (Resize(rule=shorter_side, min_size=64, max_size=128), PadToMultiple(multiple=32)),
        (Resize(rule=enlarged, min_size=64, max_size=128), CentredSquare(side=160)),
    ],
)
@pytest.mark.parametrize("size", [(100, 230), (64, 64), (30, 40), (333, 50)])
def test_detections_come_back_in_the_images_own_pixels(
    tmp_path: Path, size: tuple[int, int], resize: Resize, canvas: Canvas
) -> None:
    height, width = size
    Image.new("RGB", (width, height)).save(tmp_path / "a.png")
    model: Any = LeftUpperQuarter()
    predictor = Predictor(
        model, category_ids=[1], resize=resize, canvas=canvas, show_score=0.5, device="cpu"
    )
    (found,) = predictor([tmp_path / "a.png"])
    expected = torch.tensor([[0, 0, width / 2, height / 2]], dtype=torch.float64)
    assert found.rles is not None and found.size == size
    torch.testing.assert_close(found.boxes, expected, rtol=1e-6, atol=0)
    (mask,) = decode_masks(found.rles, size)  # the border of a pasted mask fades
    assert mask[2 : height // 2 - 2, 2 : width // 2 - 2].all()
    assert not mask[height // 2 + 2 :].any() and not mask[:, width // 2 + 2 :].any()


def test_a_file_that_is_no_image_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read the image .*text.jpg: not an image"):
        Predictor.from_checkpoint(checkpoint, device="cpu")([tmp_path / "text.jpg"])
