"""Typed errors: each carries a stable code, what came, what was expected, what to do, and an exit code.

The command line prints `str(error)` and exits with `error.exit_code`; nothing else decides exit codes.
"""

from __future__ import annotations

from pathlib import Path


class SteadyError(Exception):
    """Base of every error a user can cause or meet.

    Args:
        code: stable upper-case name, part of the public interface (for example ``IMG_TRUNCATED``).
        what: one sentence that says what is wrong.
        file: the file concerned, if any.
        seen: the value that came.
        expected: what would have been right.
        fix: what the user can do now.
    """

    exit_code = 1

    def __init__(
        self,
        code: str,
        what: str,
        *,
        file: str | Path | None = None,
        seen: object = None,
        expected: object = None,
        fix: str | None = None,
    ) -> None:
        self.code, self.what, self.fix = code, what, fix
        self.file = str(file) if file is not None else None
        self.seen, self.expected = seen, expected
        super().__init__(self.message())

    def __reduce__(self) -> tuple[object, ...]:
        # an exception is pickled by its `args`, which are the message: a worker process would fail to hand it over
        return _again, (type(self), self.__dict__.copy())

    def message(self) -> str:
        """Two lines: `error[CODE] what · file · seen … · expected …` and `  fix: …`."""
        parts = [f"error[{self.code}] {self.what}"]
        if self.file:
            parts.append(self.file)
        if self.seen is not None:
            parts.append(f"seen {self.seen}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        text = " · ".join(parts)
        return f"{text}\n  fix: {self.fix}" if self.fix else text

    def to_dict(self) -> dict[str, object]:
        """The same content for `--json` output and for `failures.jsonl`."""
        values = {
            "code": self.code,
            "what": self.what,
            "file": self.file,
            "seen": None if self.seen is None else str(self.seen),
            "expected": None if self.expected is None else str(self.expected),
            "fix": self.fix,
            "exit_code": self.exit_code,
        }
        return {key: value for key, value in values.items() if value is not None}


def _again(kind: type[SteadyError], values: dict[str, object]) -> SteadyError:
    error = kind(str(values["code"]), str(values["what"]))
    error.__dict__.update(values)
    error.args = (error.message(),)
    return error


class UsageError(SteadyError):
    """Flags that do not exist together."""

    exit_code = 2


class ConfigError(SteadyError):
    """A configuration that cannot be used: unknown key, wrong type, impossible value."""

    exit_code = 3


class InputError(SteadyError):
    """Input data that cannot be used: images, labels, prompts, data sets."""

    exit_code = 4


class CheckpointError(SteadyError):
    """Weights or a run folder that cannot be used."""

    exit_code = 5


class BatchError(SteadyError):
    """A batch ended and some of its cases failed; the others are written."""

    exit_code = 6


class ResourceError(SteadyError):
    """Not enough memory, disk or device."""

    exit_code = 7


class FileSystemError(SteadyError):
    """A file cannot be read or written for reasons outside its content."""

    exit_code = 8


class LockedError(SteadyError):
    """Another process is at work on the same files."""

    exit_code = 9


class OutputError(SteadyError):
    """An output did not pass its own check (non-finite numbers, read-back differs)."""

    exit_code = 10


class NetworkError(SteadyError):
    """A download failed, or was asked for in offline mode."""

    exit_code = 11


class ExternalError(SteadyError):
    """A program of others that we call is not installed, or it failed."""

    exit_code = 12
