"""Run a program of others: its output goes to a log as it comes, and a failure becomes a typed error with its end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from steadysam.errors import ExternalError, ResourceError, SteadyError
from steadysam.files import growing_log

TAIL_LINES = 12
_TAIL_BYTES = 1 << 16
_GRACE_S = 10.0
# what programs on PyTorch say when memory ran out; workers that vanish without a word were killed for theirs
_MEMORY = ("out of memory", "OutOfMemoryError", "MemoryError", "Cannot allocate memory", "bad_alloc")
_WORKERS = ("workers are no longer alive", "worker died", "terminated abruptly")
_DISK = ("No space left on device", "Disk quota exceeded")


@dataclass(frozen=True)
class Finished:
    """A command that ended well: its words, its wall time, and the log that holds what it said."""

    command: tuple[str, ...]
    seconds: float
    log: Path

    def record(self) -> dict[str, object]:
        """The same for a run record."""
        return {"command": list(self.command), "seconds": round(self.seconds, 3), "log": self.log.name}


def run_logged(command: Sequence[str | Path], log: Path, variables: Mapping[str, str]) -> Finished:
    """Run a command to its end; what it prints is added to `log`.

    When we are stopped, so is it, with the workers that it started.

    Args:
        command: program and arguments; no shell looks at them.
        variables: the whole environment of the process.

    Raises:
        ExternalError: `EXTERNAL_START` (it cannot be started), `EXTERNAL_FAILED` (with the end of the log).
        ResourceError: `EXTERNAL_MEMORY`, `EXTERNAL_DISK`, where the log says so or the system killed it.
    """
    words = tuple(str(word) for word in command)
    start = time.monotonic()
    with growing_log(log) as handle:
        handle.write(f"$ {' '.join(words)}\n".encode())
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=dict(variables),
                start_new_session=True,
            )
        except OSError as error:
            raise ExternalError(
                "EXTERNAL_START", f"the program cannot be started: {error.strerror or error}", file=words[0]
            ) from error
        try:
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    if code != 0:
        raise failure(Path(words[0]).name, code, log)
    return Finished(words, time.monotonic() - start, log)


def failure(program: str, code: int, log: Path) -> SteadyError:
    """The typed error for a program that ended with `code`, a negative number being a signal."""
    end = tail(log)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    what, seen = f"{program} failed ({how})", f"its last words:\n{end}"
    if any(word in end for word in _DISK):
        return ResourceError("EXTERNAL_DISK", what, file=log, seen=seen, fix="free some space and run again")
    if code == -signal.SIGKILL or any(word in end for word in (*_MEMORY, *_WORKERS)):
        fix = "use fewer --workers, or a machine with more memory"
        return ResourceError("EXTERNAL_MEMORY", what, file=log, seen=seen, fix=fix)
    return ExternalError("EXTERNAL_FAILED", what, file=log, seen=seen, fix="the whole log says more")


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log that are not empty."""
    with open(log, "rb") as handle:
        handle.seek(0, os.SEEK_END)
        handle.seek(max(0, handle.tell() - _TAIL_BYTES))
        text = handle.read().decode("utf-8", "replace")
    kept = [line.rstrip()[:300] for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(kept[-lines:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything in its group, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)  # it leads a session of its own, so this is its group
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
            return
