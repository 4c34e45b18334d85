"""One process at a time in a folder of outputs."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from steadysam.errors import InputError, LockedError
from steadysam.files import read_json, write_error, write_json

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger(__name__)

LOCK, HOLDER = ".lock", ".lock-holder.json"


@contextmanager
def alone_in(folder: str | Path, *, wait: bool = False) -> Iterator[None]:
    """No other process that asks for the same is in `folder` during the block; the folder is made if need be.

    The operating system holds the lock on the file `.lock`, so it ends with its process, however that ends.
    `.lock-holder.json` says who holds it. Both files are taken away at the end, and so is a folder that was made here
    and into which nothing was written.

    Args:
        folder: where outputs go.
        wait: until the other has ended, instead of an error.

    Raises:
        LockedError: `FS_LOCKED`, with the other's process number, host and start (UTC).
        FileSystemError, ResourceError: the folder cannot be written.
    """
    folder = Path(folder)
    new = not folder.exists()
    try:
        lock = _locked(folder, wait)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / HOLDER, {"pid": os.getpid(), "host": platform.node(), "since": since})
        yield
    finally:
        with suppress(OSError):  # where an open file cannot go it stays, which does no harm
            (folder / HOLDER).unlink(missing_ok=True)
            (folder / LOCK).unlink()  # whoever waits for it sees that it is gone, and makes it anew
            if new and not any(folder.iterdir()):
                folder.rmdir()
        lock.release()


def _locked(folder: Path, wait: bool) -> FileLock:
    from filelock import FileLock, Timeout

    patience = 0
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=patience)
        try:
            lock.acquire()
        except Timeout as error:
            if not wait:
                raise LockedError(
                    "FS_LOCKED",
                    "another process writes into this folder",
                    file=folder,
                    seen=_holder(folder),
                    fix="wait until it has ended, or choose another output folder",
                ) from error
            logger.info("waiting for %s, which writes into %s", _holder(folder), folder)
            patience = -1
        except FileNotFoundError:
            continue  # who was there has taken the folder away, as nothing was written
        else:
            return lock


def is_lock(path: Path) -> bool:
    """Whether a file in an output folder is none of its content."""
    return path.name in (LOCK, HOLDER)


def _holder(folder: Path) -> str:
    try:
        found = read_json(folder / HOLDER)
        return f"process {found['pid']} on {found['host']} since {found['since']}"
    except (InputError, KeyError, TypeError):  # it has not written it yet, or is just leaving
        return "a process that has not said who it is"
