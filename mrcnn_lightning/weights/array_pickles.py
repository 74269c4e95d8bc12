"""Pickles of NumPy arrays, read without a part of them being run or trusted.

What a pickle says is done by stand-ins of our own, and NumPy is given plain types alone:
`numpy.ndarray` itself, called with what a file says, can be made to read any address.
"""

import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np

_PLAIN = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|bool|(u?int|float)(8|16|32|64)|[SU]\d+)")


class _Type:
    """Stands for `numpy.dtype`."""

    def __init__(self, name: str, *flags: Any) -> None:
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({name!r})")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for an array."""

    def __init__(self, *unused: Any) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.fill(shape, dtype, "F" if is_fortran else "C", data)

    def fill(self, shape: Any, dtype: Any, order: Any, data: Any) -> "_Array":
        """Make the array; Python 2 wrote its bytes as text."""
        if not isinstance(dtype, _Type):
            raise pickle.UnpicklingError(f"GLOBAL {dtype!r}")
        content = data.encode("latin1") if isinstance(data, str) else bytes(memoryview(data))
        array = np.frombuffer(content, dtype.dtype).reshape(shape, order=order)
        self.array = array.astype(dtype.dtype.newbyteorder("="))
        return self


class _Named:
    """What a pickle may name; it can be called and not be changed."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("GLOBAL that is to be changed")


_NAMES = {
    **{
        (f"numpy.{core}.{module}", name): _Named(function)
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _Array),
            (
                "multiarray",
                "scalar",
                lambda dtype, data: _Array().fill((), dtype, "C", data),
            ),
            (
                "numeric",
                "_frombuffer",
                lambda data, dtype, shape, order: _Array().fill(shape, dtype, order, data),
            ),
        )
    },
    ("numpy", "ndarray"): _Named(_Array),
    ("numpy", "dtype"): _Named(_Type),
    # How Python 3 writes bytes for Python 2.
    ("_codecs", "encode"): _Named(lambda text, encoding: text.encode(encoding)),
    ("__builtin__", "bytes"): _Named(lambda: b""),
    ("collections", "OrderedDict"): _Named(dict),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _NAMES[module, name]


def read_arrays(content: bytes) -> Any:
    """What a pickle holds: dictionaries, lists and tuples of NumPy arrays and plain values.

    Raises:
        pickle.UnpicklingError: it names something else ("GLOBAL ...").
        Exception: of any kind, if it is damaged.
    """
    return _unpacked(_Unpickler(io.BytesIO(content), encoding="latin1").load())


def _unpacked(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _unpacked(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_unpacked(entry) for entry in value)
    return value
