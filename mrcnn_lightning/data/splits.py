"""What the splits of a data module are read from: files, checked and put together.

K classes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mrcnn_lightning.data.annotations import Annotations
from mrcnn_lightning.data.bands import ImageFormat
from mrcnn_lightning.data.headers import check_images
from mrcnn_lightning.data.merged_sets import Classes
from mrcnn_lightning.data.report import contents, oddities
from mrcnn_lightning.data.windows import Cut, Windows
from mrcnn_lightning.user_error import UserError

_log = logging.getLogger(__name__)


class Splits:
    """The annotations of the splits, read when they are wanted.

    Args:
        images: folders of each split, one or one of each file.
        jsons: files of each split, likewise.
        classes: other names of classes by their own, see `merged`; None for none.
        image_format: of all images.
        windows: cut large images; or None.
        cache_dir: for packed annotations.
        with_masks: whether the model has a use for masks.

    Attributes:
        files: folders and files of each split.
        annotations: of each split that was read.
        cuts: their windows, where images are cut.

    Raises:
        UserError: there are not as many folders as files, or the names are none.
    """

    def __init__(
        self,
        *,
        images: dict[str, str | Sequence[str]],
        jsons: dict[str, str | Sequence[str]],
        classes: Any,
        image_format: ImageFormat,
        windows: Windows | None,
        cache_dir: str,
        with_masks: bool,
    ) -> None:
        self.files = {split: (_listed(images[split]), _listed(jsons[split])) for split in images}
        for split, (folders, files) in self.files.items():
            if len(folders) != len(files) or not files:
                raise UserError(
                    f"data.{split}_json has {len(files)} files and data.{split}_images "
                    f"{len(folders)} folders: each set has one of both"
                )
        self.annotations: dict[str, Annotations] = {}
        self.cuts: dict[str, Cut] = {}
        self._classes = _other_names(classes)
        self._known_classes: dict[str, None] = {}  # by the files' own names
        self._image_format = image_format
        self._windows = windows
        self._cache_dir = cache_dir
        self._with_masks = with_masks

    def read(self, splits: Sequence[str], *, needs_truth: bool) -> None:
        """Read and check splits; the last of them is evaluated.

        Args:
            splits: which.
            needs_truth: whether they must be annotated.

        Raises:
            UserError: a file is missing or wrong, has no annotations or no masks where they are
                needed, or the splits do not have the same classes.
        """
        for split in splits:
            if split in self.annotations:
                continue
            self._require_files(split)
            annotations = self._one_set(split)
            if self._windows is not None:
                self._require_one_file(split)
                self._refuse_lvis(split, [annotations])
                self.cuts[split] = self._windows.cut(annotations, self._cache_dir)
                annotations = self.cuts[split].annotations
            self.annotations[split] = annotations
            if needs_truth:
                self._require_truth(split)
                self._report(split, is_evaluated=split == splits[-1])
        self._require_known_classes()
        self._require_same_classes()

    def text(self, split: str) -> str:
        """The json file or files of a split."""
        jsons = self.files[split][1]
        return jsons[0] if len(jsons) == 1 else f"[{', '.join(jsons)}]"

    def _require_known_classes(self) -> None:
        if "train" not in self.annotations:  # whose files may be those that have a name
            return
        for old in self._classes:
            if old not in self._known_classes:
                raise UserError(
                    f"data.classes names {old}, which is no class of the data: it has "
                    f"{', '.join(self._known_classes)}"
                )

    def _require_same_classes(self) -> None:
        first = next(iter(self.annotations.values()))
        others = set(zip(first.category_ids, first.class_names, strict=True))
        for split, annotations in self.annotations.items():
            own = set(zip(annotations.category_ids, annotations.class_names, strict=True))
            for category, name in sorted(own ^ others)[:1]:
                raise UserError(
                    f"data.{split}_json={self.text(split)} has other categories than "
                    f"the file beside it: only one of them has {name} with the id {category}"
                )

    def _one_set(self, split: str) -> Annotations:
        """The annotations of a split's files, compared with their images, as one set.

        Raises:
            UserError: see `Annotations.load`, `check_images` and `merged`; or one is LVIS's, and
                is evaluated, which can only be done as it is.
        """
        parts = []
        for folder, json in zip(*self.files[split], strict=True):
            part = Annotations.load(json, cache_dir=self._cache_dir)
            check_images(
                part,
                images=(f"data.{split}_images", folder),
                json=f"data.{split}_json={json}",
                cache_dir=self._cache_dir,
                image_format=self._image_format,
            )
            parts.append(part)
            self._known_classes |= dict.fromkeys(part.class_names)
        if len(parts) == 1 and not self._classes:
            return parts[0]
        self._refuse_lvis(split, parts)
        return Annotations.merge(parts, self._classes, cache_dir=self._cache_dir)

    def _refuse_lvis(self, split: str, parts: Sequence[Annotations]) -> None:
        if split != "train" and any(part.frequencies is not None for part in parts):
            raise UserError(
                f"data.{split}_json={self.text(split)} has neg_category_ids, as LVIS "
                "has: it is evaluated as it is, without data.classes, data.windows and other "
                "files beside it"
            )

    def _require_one_file(self, split: str) -> None:
        if len(self.files[split][1]) > 1:
            raise UserError(
                f"data.{split}_json={self.text(split)} are several sets, and "
                "data.windows cuts the images of one: give one, or leave data/windows out"
            )

    def _require_truth(self, split: str) -> None:
        """Refuse a file that is not annotated as far as the model needs it."""
        name, annotations = (
            f"data.{split}_json={self.text(split)}",
            self.annotations[split],
        )
        if not annotations.is_annotated:
            raise UserError(f"{name} has no annotations: stage=predict needs none")
        without = annotations.without_mask
        if self._with_masks and without:
            some = ", ".join(map(str, without[:5])) + (", ..." if len(without) > 5 else "")
            raise UserError(
                f"the model has a mask head, but {len(without)} objects of {name} have no "
                f"segmentation (annotations {some}): model=faster_rcnn learns from boxes alone"
            )

    @rank_zero_only
    def _report(self, split: str, *, is_evaluated: bool) -> None:
        """Say what is in a file that was read."""
        annotations, file = (
            self.annotations[split],
            f"data.{split}_json={self.text(split)}",
        )
        for sentence in contents(annotations):
            _log.info("%s: %s", file, sentence)
        for sentence in oddities(annotations, is_evaluated=is_evaluated):
            _log.warning("%s: %s", file, sentence)

    def _require_files(self, split: str) -> None:
        images, jsons = self.files[split]
        paths = [*(("json", path) for path in jsons), *(("images", path) for path in images)]
        for kind, path in paths:
            if not Path(path).exists():
                raise UserError(
                    f"data.{split}_{kind}={path} does not exist: say where the data set lies with "
                    "data_root=DIR, fetch COCO with `mrcnn download-coco DIR`, or try "
                    "experiment=shapes, which needs none"
                )


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _other_names(classes: Any) -> Classes:
    """New names of classes by their old ones.

    Raises:
        UserError: it is no such table.
    """
    if classes is None:
        return {}
    if not isinstance(classes, dict) or not all(
        new is None or (isinstance(new, str) and new) for new in classes.values()
    ):
        raise UserError(
            f"data.classes={classes} is no table of names, {{old: new}}, where null leaves a class "
            "out"
        )
    return {str(old): new for old, new in classes.items()}
