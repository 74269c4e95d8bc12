"""What W&B has written to the disk of a run, for which its package has no reader.

The files are in LevelDB's log format: blocks of 32 KiB, in them pieces of records, each with a
checksum, a length and a kind. https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_FILE_HEADER = 7  # bytes, W&B's own
_BLOCK = 32768
_PIECE_HEADER = struct.Struct("<IHB")
_WHOLE, _LAST = 1, 4  # kinds of pieces that end a record


def read_history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows that a run has logged, as far as they are whole.

    Args:
        file: `run-ID.wandb`.
    """
    for record in read_records(file):
        row: dict[str, Any] = {}
        for item in record.history.item:
            # A picture has several values: val/picture_00 and below that its format and files.
            name = item.key or item.nested_key[0]
            row[name] = json.loads(item.value_json)
        if row:
            yield row


def read_records(file: Path) -> Iterator[Any]:
    """W&B's records, of whatever kind.

    Args:
        file: `run-ID.wandb`.
    """
    for data in _pieces_together(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(data)
        yield record


def _pieces_together(data: bytes) -> Iterator[bytes]:
    position, record = _FILE_HEADER, b""
    while position + _PIECE_HEADER.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _PIECE_HEADER.size:
            position += left
            continue
        _, length, kind = _PIECE_HEADER.unpack_from(data, position)
        position += _PIECE_HEADER.size
        if position + length > len(data):  # the process was killed while this was written
            return
        record += data[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST):
            yield record
            record = b""
