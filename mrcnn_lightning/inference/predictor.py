"""From a checkpoint and photos to what is in them.

C channels of an image.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mrcnn_lightning.checkpoint import load_checkpoint
from mrcnn_lightning.data.bands import RGB, ImageFormat
from mrcnn_lightning.data.dataset import collate
from mrcnn_lightning.data.sizing import Canvas, Resize
from mrcnn_lightning.data.transforms import ImageTargets, Sample
from mrcnn_lightning.models.detector import Detector
from mrcnn_lightning.results.image_detections import ImageDetections, per_image
from mrcnn_lightning.user_error import UserError

PRECISIONS = ("32", "bf16")


@dataclass
class Prediction:
    """What came of one file: an image and its detections, or an error."""

    number: int  # of the file, from 1; also the detections' image id
    path: Path
    image: Tensor | None = None  # (C, H, W) uint8, or float32
    detections: ImageDetections | None = None
    error: str | None = None


class Predictor:
    """Finds objects in image files.

    Args:
        model: in evaluation mode.
        category_ids: of the model's classes 1..K.
        resize: of images.
        canvas: of batches.
        show_score: less confident detections are not drawn.
        image_format: of image files.
        device: where to compute; `auto` is a GPU if there is one.
        precision: 32 or bf16, of what a loss of digits does not harm.
        compiled: whether `torch.compile` makes the model's kernels, which takes a minute at first.

    Raises:
        UserError: there is no such device or precision.
    """

    def __init__(
        self,
        model: Detector,
        *,
        category_ids: Sequence[int],
        resize: Resize,
        canvas: Canvas,
        show_score: float,
        image_format: ImageFormat = RGB,
        device: str = "auto",
        precision: str = "32",
        compiled: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"precision={precision} is not one of {', '.join(PRECISIONS)}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.device = torch.device(device)
            self.model = model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device={device} cannot be used: {error}") from error
        if compiled:
            model.compile_parts()
        self.precision = precision
        self.class_names = model.class_names
        self.category_ids = list(category_ids)
        self.resize = resize
        self.canvas = canvas
        self.show_score = show_score
        self.image_format = image_format

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: str = "32",
        compiled: bool = False,
    ) -> "Predictor":
        """The predictor of a checkpoint, with images sized as it was trained for.

        Raises:
            UserError: see `load_checkpoint`, or there is no such device or precision.
        """
        model, description, resize, canvas = load_checkpoint(path)
        return cls(
            model,
            category_ids=description.category_ids,
            resize=resize,
            canvas=canvas,
            show_score=description.show_score,
            image_format=ImageFormat(model.backbone.pixels.channels, description.dtype),
            device=device,
            precision=precision,
            compiled=compiled,
        )

    def read(self, path: str | Path) -> Tensor:
        """An image file as the model takes it: (3, H, W) uint8 RGB, or (C, H, W) of its kind.

        Raises:
            UserError: it is no image, or has other channels.
        """
        return self.image_format.read(path)

    def __call__(
        self, paths: Sequence[str | Path], *, batch_size: int = 1
    ) -> list[ImageDetections]:
        """The detections of image files, in their order and in their own pixels.

        Raises:
            UserError: a file is no image.
        """
        found: dict[int, ImageDetections] = {}
        for prediction in self.stream(paths, batch_size=batch_size):
            if prediction.detections is None:
                raise UserError(prediction.error)
            found[prediction.number] = prediction.detections
        return [found[number] for number in sorted(found)]

    def stream(self, paths: Iterable[str | Path], *, batch_size: int) -> Iterator[Prediction]:
        """Predictions as they come, which is not in order: images of one size share a batch."""
        waiting: dict[tuple[int, ...], list[tuple[Prediction, Sample]]] = {}
        for number, path in enumerate(paths, start=1):
            prediction = Prediction(number, Path(path))
            try:
                prediction.image = self.read(path)
            except UserError as error:
                prediction.error = str(error)
                yield prediction
                continue
            sample = self._sample(prediction.image, number)
            size = tuple(self.canvas.size(torch.tensor(sample.image.shape[1:])).tolist())
            waiting.setdefault(size, []).append((prediction, sample))
            if len(waiting[size]) == batch_size:
                yield from self._predict(waiting.pop(size))
        for batch in waiting.values():
            yield from self._predict(batch)

    def predict_batch(self, images: Sequence[Tensor]) -> list[ImageDetections]:
        """The detections of images (3, H, W) uint8 RGB, all on one canvas; their ids are 1, 2, ...

        Images of another kind are as `read` gives them. An image finds a little else on a larger
        canvas, so give images of about one size.
        """
        return self._found([self._sample(image, number) for number, image in enumerate(images, 1)])

    def _sample(self, image: Tensor, number: int) -> Sample:
        return Sample(
            image=self.resize(image),
            image_id=number,
            seed=0,
            original_size=(image.shape[1], image.shape[2]),
            targets=ImageTargets(
                boxes=torch.empty(0, 4),
                labels=torch.empty(0, dtype=torch.int64),
                crowd=torch.empty(0, dtype=torch.bool),
                masks=None,
                mask_frames=None,
            ),
        )

    def _predict(self, waiting: list[tuple[Prediction, Sample]]) -> Iterator[Prediction]:
        found = self._found([sample for _, sample in waiting])
        for (prediction, _), detections in zip(waiting, found, strict=True):
            prediction.detections = detections
            yield prediction

    @torch.inference_mode()
    def _found(self, samples: list[Sample]) -> list[ImageDetections]:
        batch = collate(samples, canvas=self.canvas)
        if self.device.type == "cuda":
            batch = batch.pin_memory()  # or the host would wait for the copy
        batch = batch.to(self.device)
        is_half = self.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
            detections = self.model.predict(batch)
        return per_image(detections, batch, self.model.paste)
