"""Photos in folders, and what was found in them: a file of results, and pictures.

N objects of one image.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mrcnn_lightning.inference.drawing import draw
from mrcnn_lightning.inference.predictor import Prediction, Predictor
from mrcnn_lightning.user_error import UserError

_LONGEST_NAME = 255  # bytes, on most file systems


def find_photos(places: Iterable[Path], *, recursive: bool) -> tuple[list[Path], int]:
    """Files, and those in folders that are images by their names; and how many are not.

    Args:
        places: files, which are taken whatever their names, and folders.
        recursive: whether folders in folders are searched.

    Raises:
        UserError: there is no such file or folder, or no image in a folder.
    """
    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN} | {".npy"}
    photos: list[Path] = []
    num_skipped = 0
    for place in places:
        if not place.exists():
            raise UserError(f"no such file or folder: {place}")
        if not place.is_dir():
            photos.append(place)
            continue
        files = [each for each in (place.rglob if recursive else place.glob)("*") if each.is_file()]
        images = [
            file
            for file in files
            if file.suffix.lower() in suffixes and not file.name.startswith(".")
        ]
        if not images:
            remedy = "" if recursive else "; --recursive searches the folders in it"
            raise UserError(f"no image in {place} ({len(files)} other files){remedy}")
        photos += sorted(images)
        num_skipped += len(files) - len(images)
    return photos, num_skipped


def make_folder(out: Path, photos: Iterable[Path]) -> None:
    """Make the folder of results, apart from photos.

    Raises:
        UserError: it cannot be made, or photos lie in it, which pictures could overwrite and
            which would be taken for photos the next time.
    """
    out = out.resolve()
    inside = next((photo for photo in photos if photo.resolve().is_relative_to(out)), None)
    if inside is not None:
        raise UserError(
            f"--out {out} holds {inside}, which is to be looked at: give a folder of its own"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error}") from error


class Findings:
    """What was found, picture by picture.

    Args:
        predictor: that finds it.
        photos: all that will be looked at, in order.
        out: the folder for pictures and `predictions.json`.
        min_score: less confident detections are not drawn; None is the predictor's own.
        has_pictures: whether anything is drawn.
        bands: what is shown of images that are not RGB, see `as_rgb`.
    """

    def __init__(
        self,
        predictor: Predictor,
        photos: Sequence[Path],
        *,
        out: Path,
        min_score: float | None,
        has_pictures: bool,
        bands: Sequence[int] | None = None,
    ) -> None:
        self.predictor = predictor
        self.out = out
        self.bands = bands
        self.min_score = predictor.show_score if min_score is None else min_score
        self.names = _picture_names(photos) if has_pictures else None
        self.results: list[dict[str, Any]] = []
        self.num_done = 0
        self.errors: list[str] = []

    def add(self, prediction: Prediction) -> None:
        """Draw a prediction, and keep its results.

        Raises:
            OSError: the picture cannot be written; the results are kept.
        """
        if prediction.error is not None:
            self.errors.append(prediction.error)
            return
        assert prediction.detections is not None
        found = prediction.detections.to_coco(self.predictor.category_ids)
        self.results += [result | {"file_name": str(prediction.path)} for result in found]
        self.num_done += 1
        if self.names is not None:
            assert prediction.image is not None
            picture = draw(
                prediction.image,
                prediction.detections,
                self.predictor.class_names,
                min_score=self.min_score,
                bands=self.bands,
            )
            picture.save(self.out / self.names[prediction.number - 1])

    def write(self) -> str:
        """Write the results, whole or not at all; returns how many there are, and where."""
        self.results.sort(key=lambda result: result["image_id"])
        unfinished = self.out / ".predictions.json.unfinished"
        try:
            unfinished.write_text(json.dumps(self.results))
            unfinished.replace(self.out / "predictions.json")
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            return f"the results of {self.num_done} images could not be written: {error}"
        return f"{self.num_done} images done, {len(self.results)} objects: {self.out}"


def _picture_names(photos: Sequence[Path]) -> list[str]:
    """A name for each photo's picture; no two are one, also where case does not count."""
    names: list[str] = []
    taken: set[str] = set()
    for number, photo in enumerate(photos, start=1):
        name = f"{photo.name}.png"
        if len(os.fsencode(name)) > _LONGEST_NAME:
            name = f"{number}.png"
        while name.casefold() in taken:
            name = f"{number}_{name}"
        taken.add(name.casefold())
        names.append(name)
    return names
