"""Windows of image files, without the whole image in memory where the format allows that."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import ExifTags, Image
from torch import Tensor

from mrcnn_lightning.data.bands import (
    ImageFormat,
    StoredImage,
    Window,
    as_tensor,
    of_rasterio,
    stored_image,
)
from mrcnn_lightning.data.windows import Cut
from mrcnn_lightning.user_error import UserError

_TIFF = (".tif", ".tiff")


class WindowReader:
    """Reads the windows of a set's images.

    NumPy's arrays, and TIFF where rasterio is installed, are read by window. Other files are
    decoded once, one at a time, into an array in the cache, as large as their pixels.

    Args:
        cut: the windows.
        image_format: of all images.
        cache_dir: for decoded images.
    """

    def __init__(self, cut: Cut, *, image_format: ImageFormat, cache_dir: str) -> None:
        self.cut = cut
        self.image_format = image_format
        self.folder = Path(cache_dir).expanduser() / "decoded"

    def read(self, path: Path, index: int) -> Tensor:
        """A window (C, h, w) of a file.

        Args:
            path: of the whole image.
            index: of the window in the set.

        Raises:
            UserError: see `ImageFormat.read`, or the cache cannot be written to.
        """
        top, left, height, width = self.cut.places[index].tolist()
        whole_size = tuple(self.cut.whole_sizes[index].tolist())
        stored = self._by_window(path)
        if stored is None or stored.size != whole_size:
            stored = stored_image(self._decoded(path, whole_size))
        place: Window = (top, left, height, width)
        try:
            return as_tensor(stored.read(place))
        except Exception as error:  # what readers raise for damaged files has no common ancestor
            raise UserError(f"cannot read the image {path}: {error}") from error

    def _by_window(self, path: Path) -> StoredImage | None:
        """A file that needs not be decoded as a whole, if it holds what is wanted."""
        suffix = path.suffix.lower()
        if suffix == ".npy":
            stored = stored_image(path)
        elif suffix in _TIFF and importlib.util.find_spec("rasterio") and self._is_upright(path):
            stored = of_rasterio(path)
        else:
            return None
        wanted = (self.image_format.channels, self.image_format.dtype)
        return stored if (stored.channels, stored.dtype) == wanted else None

    def _is_upright(self, path: Path) -> bool:
        """Whether a file's pixels lie as `read_image` turns them, which rasterio does not."""
        if not self.image_format.is_rgb:
            return True
        try:
            with Image.open(path) as file:
                return bool(file.getexif().get(ExifTags.Base.Orientation, 1) == 1)
        except Exception:  # what Pillow raises for damaged files has no common ancestor
            return False

    def _decoded(self, path: Path, size: tuple[int, ...]) -> Path:
        """The array of a file, made if it is not there; another file has another name."""
        try:
            state = path.stat()
            content = repr([str(path.resolve()), state.st_size, state.st_mtime_ns, size])
            content += repr(tuple(self.image_format))
            name = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
            self.folder.mkdir(parents=True, exist_ok=True)
            target = self.folder / f"{name}.npy"
            with FileLock(target.with_suffix(".lock")):
                if not target.exists():
                    image = self.image_format.read(path, size=(size[0], size[1]))
                    unfinished = target.with_suffix(".unfinished.npy")
                    np.save(unfinished, image.permute(1, 2, 0).numpy())
                    unfinished.replace(target)
        except OSError as error:
            raise UserError(
                f"the image {path} cannot be decoded into {self.folder} (data.cache_dir): {error}"
            ) from error
        return target
