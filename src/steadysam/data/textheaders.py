"""The text headers of NRRD and MetaImage, read and judged before any library opens the file.

Libraries follow whatever data file a header names and fill in a missing orientation without a word; here both
are refused. Fault names: reliability rules R01 to R12 of the project's specification.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steadysam.data.affines import Orientation, no_orientation
from steadysam.data.nifti import truncated
from steadysam.errors import InputError, ResourceError

TextKind = Literal["nrrd", "meta"]

_MAX_HEADER = 64 << 10
_CHUNK = 1 << 20
_NRRD_WORDS = {
    1: "signed char|int8|int8_t|uchar|unsigned char|uint8|uint8_t",
    2: "short|short int|signed short|signed short int|int16|int16_t|ushort|unsigned short|unsigned short int"
    "|uint16|uint16_t",
    4: "int|signed int|int32|int32_t|uint|unsigned int|uint32|uint32_t|float",
    8: "longlong|long long|long long int|int64|int64_t|ulonglong|unsigned long long|uint64|uint64_t|double",
}
_META_WORDS = {
    1: "MET_CHAR|MET_UCHAR",
    2: "MET_SHORT|MET_USHORT",
    4: "MET_INT|MET_UINT|MET_LONG|MET_ULONG|MET_FLOAT",
    8: "MET_DOUBLE|MET_LONG_LONG|MET_ULONG_LONG",
}
_BYTES = {
    word: size for table in (_NRRD_WORDS, _META_WORDS) for size, words in table.items() for word in words.split("|")
}
_NRRD_SPACES = {
    "left-posterior-superior",
    "lps",
    "right-anterior-superior",
    "ras",
    "left-anterior-superior",
    "las",
}


@dataclass(frozen=True)
class TextHeader:
    """What a text header promises.

    Args:
        sizes: along all axes, channels included.
        item_bytes: of one number.
        compressed: gzip or zlib.
        data: the file that holds the voxels.
        start: the first byte of the voxels in `data`.
        oriented: whether the header places the image in the patient.
    """

    sizes: tuple[int, ...]
    item_bytes: int
    compressed: bool
    data: Path
    start: int
    oriented: bool

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the unpacked voxels."""
        return math.prod(self.sizes) * self.item_bytes


def read_text_header(path: Path, kind: TextKind, assume_orientation: Orientation | None) -> TextHeader:
    """Read and judge the header of `path`; voxels are not touched.

    Raises:
        InputError: `NRRD_DETACHED_REFUSED`, `NRRD_ENDIAN`, `IMG_NO_ORIENTATION`, `IMG_NDIM`, `IMG_DIMS`,
            `IMG_DTYPE`, `IMG_FORMAT`, `IMG_HEADER_TOO_LONG`, `IMG_HEADER_INCONSISTENT`.
    """
    fields, end = _nrrd_fields(path) if kind == "nrrd" else _meta_fields(path)
    header = _nrrd(path, fields, end) if kind == "nrrd" else _meta(path, fields, end)
    if any(n < 1 for n in header.sizes) or math.prod(header.sizes) * header.item_bytes >= 1 << 63:
        raise InputError("IMG_DIMS", "impossible number of voxels", file=path, seen=header.sizes)
    if not header.oriented and assume_orientation is None:
        raise no_orientation(path, "the header does not say where left and right are")
    return header


def check_payload(path: Path, header: TextHeader, max_bytes: int) -> None:
    """The voxels are all there and within the limit; a compressed stream is unpacked once to see.

    Raises:
        InputError: `IMG_TRUNCATED`, `IMG_CORRUPT`.
        ResourceError: `IMG_TOO_LARGE`.
    """
    if header.voxel_bytes > max_bytes:
        raise ResourceError(
            "IMG_TOO_LARGE",
            "the image is larger than the limit",
            file=path,
            seen=f"{header.voxel_bytes} bytes of voxels",
            expected=f"at most {max_bytes}",
            fix="raise max_bytes (--max-image-bytes) if you trust the file",
        )
    if not header.compressed:
        held = header.data.stat().st_size - header.start
        if held < header.voxel_bytes:
            raise truncated(path, header.voxel_bytes, held)
        return
    held, whole = _unpacked_size(path, header)
    if held < header.voxel_bytes or not whole:
        raise truncated(path, header.voxel_bytes, held)


def _unpacked_size(path: Path, header: TextHeader) -> tuple[int, bool]:
    """Bytes that the stream gives (hardly more than promised), and whether it ended with its checksum."""
    unpack = zlib.decompressobj(47)  # gzip or zlib, by content
    held = 0
    try:
        with open(header.data, "rb") as handle:
            handle.seek(header.start)
            while not unpack.eof and held <= header.voxel_bytes:
                chunk = unpack.unconsumed_tail or handle.read(_CHUNK)
                if not chunk:
                    break
                held += len(unpack.decompress(chunk, _CHUNK))
    except zlib.error as error:
        raise InputError("IMG_CORRUPT", f"the compressed voxels are damaged: {error}", file=path) from error
    if held > header.voxel_bytes:
        raise InputError("IMG_GZIP_OVERRUN", "the stream unpacks to more than its header promises", file=path)
    return held, unpack.eof


def _inconsistent(path: Path, what: str, seen: object = None) -> InputError:
    return InputError("IMG_HEADER_INCONSISTENT", what, file=path, seen=seen)


def _lines(path: Path) -> tuple[list[tuple[str, int]], bool]:
    """Lines of the first 64 KiB as (text, offset of the next line), and whether the file goes on."""
    with open(path, "rb") as handle:
        block = handle.read(_MAX_HEADER)
        more = bool(handle.read(1))
    lines, position = [], 0
    while (end := block.find(b"\n", position)) >= 0:
        lines.append((block[position:end].decode("latin-1").rstrip("\r"), end + 1))
        position = end + 1
    if position < len(block):
        lines.append((block[position:].decode("latin-1"), len(block)))
    return lines, more


def _too_long(path: Path) -> InputError:
    return InputError("IMG_HEADER_TOO_LONG", "the text header does not end", file=path, expected=f"{_MAX_HEADER} bytes")


def _nrrd_fields(path: Path) -> tuple[dict[str, str], int]:
    lines, more = _lines(path)
    fields: dict[str, str] = {}
    for text, after in lines[1:]:
        if not text:
            return fields, after
        key, colon, value = text.partition(":")
        if text.startswith("#") or not colon or value.startswith("="):
            continue
        key = key.strip().lower().replace("datafile", "data file")
        if key in fields:
            raise _inconsistent(path, f"field {key!r} stands twice")
        fields[key] = value.strip()
    if more or "data file" not in fields:  # a detached header may end with the file
        raise _too_long(path)
    return fields, 0


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    lines, _ = _lines(path)
    fields: dict[str, str] = {}
    for text, after in lines:
        key, _, value = (part.strip() for part in text.partition("="))
        if key in fields:
            raise _inconsistent(path, f"field {key!r} stands twice")
        fields[key] = value
        if key == "ElementDataFile":
            return fields, after
    raise _too_long(path)


def _need(path: Path, fields: dict[str, str], *keys: str) -> str:
    for key in keys:
        if key in fields:
            return fields[key]
    raise _inconsistent(path, f"the header has no field {keys[0]!r}")


def _integers(path: Path, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split())
    except ValueError as error:
        raise _inconsistent(path, "not whole numbers", text[:60]) from error


def _item_bytes(path: Path, word: str) -> int:
    if word not in _BYTES:
        raise InputError(
            "IMG_DTYPE",
            "voxels of this type are not supported",
            file=path,
            seen=word,
            expected="integers or floats",
        )
    return _BYTES[word]


def _data_file(path: Path, name: str) -> Path:
    """A plain file in the header's own folder; everything else is refused."""
    beside = path.parent / name
    plain = name == Path(name).name and "%" not in name and "\\" not in name and not name.upper().startswith("LIST")
    if not plain or beside.is_symlink():
        raise InputError(
            "NRRD_DETACHED_REFUSED",
            "the header names a data file in another place",
            file=path,
            seen=name[:100],
            expected="voxels in the same file, or one plain file in the same folder",
            fix="convert it to a single .nrrd, .mha or .nii.gz file",
        )
    if not beside.is_file():
        raise InputError("IMG_PAIR_MISSING", "the data file is not there", file=path, seen=name[:100])
    return beside


def _nrrd(path: Path, fields: dict[str, str], end: int) -> TextHeader:
    data = _data_file(path, fields["data file"]) if "data file" in fields else path
    sizes = _integers(path, _need(path, fields, "sizes"))
    if _integers(path, _need(path, fields, "dimension")) != (len(sizes),):
        raise _inconsistent(path, "dimension and sizes disagree", fields["dimension"])
    directions = fields.get("space directions", "")
    channels = directions.lower().split().count("none")
    if len(sizes) - channels not in (2, 3) or channels > 1:
        raise InputError("IMG_NDIM", "not a 2-D or 3-D image", file=path, seen=f"sizes {sizes}")
    encoding = _need(path, fields, "encoding").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise InputError("IMG_FORMAT", "encoding not supported", file=path, seen=encoding, expected="raw or gzip")
    item_bytes = _item_bytes(path, _need(path, fields, "type"))
    if item_bytes > 1 and fields.get("endian", "").lower() not in ("little", "big"):
        raise InputError("NRRD_ENDIAN", "the byte order is missing", file=path, expected="endian: little or big")
    for key in ("line skip", "byte skip", "lineskip", "byteskip"):
        if fields.get(key, "0") != "0":
            raise _inconsistent(path, f"{key} is not supported", fields[key])
    oriented = fields.get("space", "").lower() in _NRRD_SPACES and bool(directions)
    return TextHeader(sizes, item_bytes, encoding != "raw", data, end if data == path else 0, oriented)


def _meta(path: Path, fields: dict[str, str], end: int) -> TextHeader:
    name = fields["ElementDataFile"]
    data = path if name.upper() == "LOCAL" else _data_file(path, name)
    sizes = _integers(path, _need(path, fields, "DimSize"))
    if _integers(path, _need(path, fields, "NDims")) != (len(sizes),):
        raise _inconsistent(path, "NDims and DimSize disagree", fields["NDims"])
    if len(sizes) not in (2, 3):
        raise InputError("IMG_NDIM", "not a 2-D or 3-D image", file=path, seen=f"DimSize {sizes}")
    if fields.get("BinaryData", "True").lower() != "true" or fields.get("HeaderSize", "0") != "0":
        raise InputError("IMG_FORMAT", "only binary data right after the header is supported", file=path)
    channels = _integers(path, fields.get("ElementNumberOfChannels", "1"))
    compressed = fields.get("CompressedData", "False").lower() == "true"
    item_bytes = _item_bytes(path, _need(path, fields, "ElementType"))
    oriented = any(key in fields for key in ("TransformMatrix", "Rotation", "Orientation"))
    return TextHeader(sizes + channels, item_bytes, compressed, data, end if data == path else 0, oriented)
