"""Gzip streams, unpacked chunk by chunk and checked to their last byte."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from pathlib import Path

from steadysam.errors import InputError

log = logging.getLogger(__name__)

_GZIP = b"\x1f\x8b"


def is_gzip(path: Path) -> bool:
    """Whether the file starts like a gzip stream."""
    with open(path, "rb") as handle:
        return handle.read(2) == _GZIP


def unpack(path: Path, chunk: int = 1 << 22) -> Iterator[bytes]:
    """The unpacked content in pieces of at most `chunk` bytes; at the end checksum and length are compared.

    Several members in a row count as one stream; bytes behind the last are ignored and said in the log.

    Raises:
        InputError: `IMG_GZIP_TRUNCATED`, `IMG_GZIP_CRC`.
    """
    with open(path, "rb") as handle:
        packed, member = handle.read(chunk), zlib.decompressobj(31)
        while True:
            try:
                piece = member.decompress(packed, chunk)
            except zlib.error as error:
                raise InputError(
                    "IMG_GZIP_CRC",
                    f"the gzip stream is damaged: {error}",
                    file=path,
                    fix="copy or download the file again",
                ) from error
            if piece:
                yield piece
            packed = member.unconsumed_tail
            if member.eof:
                packed = member.unused_data + handle.read(chunk)
                if not packed.startswith(_GZIP):
                    break
                member = zlib.decompressobj(31)
            elif not packed and not (packed := handle.read(chunk)) and not piece:
                raise InputError(
                    "IMG_GZIP_TRUNCATED",
                    "the gzip stream ends too early",
                    file=path,
                    fix="copy or download the file again",
                )
    if packed.strip(b"\x00"):
        log.warning("IMG_TRAILING_DATA %s: bytes after the gzip stream are ignored", path)


def first_bytes(path: Path, count: int) -> bytes:
    """Up to `count` bytes of content, unpacked if the file is a gzip stream.

    Raises:
        InputError: as `unpack`, if the stream breaks before.
    """
    if not is_gzip(path):
        with open(path, "rb") as handle:
            return handle.read(count)
    start = b""
    for piece in unpack(path, 1 << 12):
        start += piece
        if len(start) >= count:
            break
    return start[:count]
