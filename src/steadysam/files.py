"""The one way to write files, and to name things by their content.

A file is written under a temporary name in the same folder, flushed to the disk, and renamed: a reader sees the
old file or the new one, never a part.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from steadysam.errors import FileSystemError, InputError, ResourceError, SteadyError

_CHUNK = 1 << 20


def atomic_write(path: str | Path, produce: Callable[[Path], None]) -> Path:
    """Let `produce` write a temporary file beside `path`, then rename it to `path`.

    The temporary name keeps the suffixes of `path`, because writers choose a format by them.

    Raises:
        ResourceError: the disk is full (`FS_FULL`).
        FileSystemError: the folder cannot be written (`FS_WRITE`).
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        produce(temporary)
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except SteadyError:
        raise
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # there may be no folder to remove it from
            temporary.unlink()
    return path


def write_error(path: Path, error: OSError) -> SteadyError:
    """The typed error for an `OSError` met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceError(
            "FS_FULL", f"no space left to write: {error.strerror}", file=path, fix="free some space and run again"
        )
    return FileSystemError(
        "FS_WRITE",
        f"cannot write: {error.strerror or error}",
        file=path,
        fix="check that the folder exists, is a folder, and may be written",
    )


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Atomically write `content`."""
    return atomic_write(path, lambda temporary: _write_all(temporary, content))


def write_text(path: str | Path, text: str) -> Path:
    """Atomically write UTF-8 text with `\\n` line ends."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Atomically write JSON: sorted as given, two spaces, no NaN."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON strictly: duplicate keys, NaN and Infinity are refused.

    Raises:
        InputError: `JSON_SYNTAX`, `JSON_DUPLICATE_KEY`, `JSON_NONFINITE`, `FILE_MISSING`.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("FILE_MISSING", "no such file", file=path, fix="check the path") from error
    except IsADirectoryError as error:
        raise InputError("FILE_MISSING", "this is a folder, not a file", file=path) from error
    except UnicodeDecodeError as error:
        raise InputError("JSON_SYNTAX", "not UTF-8 text", file=path, seen=f"byte {error.start}") from error

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise InputError("JSON_DUPLICATE_KEY", f"key {sorted(twice)[0]!r} stands twice", file=path)
        return dict(items)

    def constant(name: str) -> Any:
        raise InputError("JSON_NONFINITE", f"{name} is not a number in JSON", file=path)

    def number(digits: str) -> float:
        value = float(digits)
        return value if np.isfinite(value) else constant(digits)

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except json.JSONDecodeError as error:
        raise InputError(
            "JSON_SYNTAX", error.msg, file=path, seen=f"line {error.lineno}, column {error.colno}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError("JSON_SYNTAX", f"cannot be read: {type(error).__name__}", file=path) from error


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def content_key(*parts: Any) -> str:
    """SHA-256 over arrays (with dtype and shape), bytes, and JSON values, each with its kind and length.

    Two different sequences of parts never give the same bytes to the hash, so a stale hit in a cache is impossible
    rather than unlikely.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            kind, body = f"array:{part.dtype.str}:{part.shape}", np.ascontiguousarray(part).tobytes()
        elif isinstance(part, bytes):
            kind, body = "bytes", part
        else:
            kind, body = "json", json.dumps(part, sort_keys=True, default=str).encode()
        digest.update(f"{kind}:{len(body)}:".encode())
        digest.update(body)
    return digest.hexdigest()


def slug(text: str) -> str:
    """Letters, digits and hyphens only, as file names want them; `+` becomes `p`, so that UNet++ is not UNet."""
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in text.replace("+", "p"))
    return "-".join(part for part in kept.split("-") if part)


@contextmanager
def growing_log(path: str | Path) -> Iterator[IO[bytes]]:
    """A log to which another program adds while it runs; the one kind of file that is seen before it is whole.

    Raises:
        FileSystemError, ResourceError: see `write_error`.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise write_error(path, error) from error
    with open(path, "ab", buffering=0) as handle:
        yield handle


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Fill a folder under a temporary name; it appears under `path` only when the block ends without error.

    Raises:
        FileSystemError: `path` exists already (`FS_EXISTS`).
    """
    path = Path(path)
    if path.exists():
        raise FileSystemError("FS_EXISTS", "the folder exists already", file=path, fix="choose another name")
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        remove_folder(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        remove_folder(temporary)


@contextmanager
def files_together(folder: str | Path) -> Iterator[Path]:
    """Fill a temporary folder inside `folder`; its files move into `folder` when the block ends without error.

    If one of several files that belong together cannot be written, older ones of the same names stay as they were.
    """
    folder = Path(folder)
    temporary = folder / f".tmp-{os.getpid()}-together"
    try:
        remove_folder(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        for file in sorted(temporary.iterdir()):
            os.replace(file, folder / file.name)
        _fsync_folder(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        remove_folder(temporary)


def remove_folder(path: Path) -> None:
    """Delete a folder that we made, with what is in it; nothing happens if it is not there."""
    if not path.is_dir():
        return
    for child in sorted(path.rglob("*"), reverse=True):
        child.rmdir() if child.is_dir() and not child.is_symlink() else child.unlink()
    path.rmdir()


def sweep_temporaries(folder: Path) -> int:
    """Remove temporary files and folders that a killed run left in `folder`; returns how many."""
    count = 0
    for stale in folder.glob(".tmp-*") if folder.is_dir() else ():
        process = stale.name.split("-")[1]
        if process.isdigit() and _alive(int(process)):
            continue
        remove_folder(stale) if stale.is_dir() else stale.unlink(missing_ok=True)
        count += 1
    return count


def _alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _write_all(path: Path, content: bytes) -> None:
    with open(path, "wb") as handle:
        handle.write(content)


def _fsync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # some file systems have no folder handles; the rename is then as safe as they make it
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
