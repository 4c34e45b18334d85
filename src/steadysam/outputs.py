"""Where results may go: never over a run, nor into a folder that the same call reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from steadysam.errors import FileSystemError, SteadyError
from steadysam.files import read_json
from steadysam.runs import RUNS_FILE

_OF_A_RUN = (("weights.safetensors",), ("config.toml", "run.json"), (RUNS_FILE,))  # finished; begun; one per label


def refuse_output(output: Path, inputs: Iterable[Path | None]) -> None:
    """Refuse a folder of outputs that holds what the call needs, before anything is written.

    Args:
        inputs: files or folders that the call reads; None stands for none.

    Raises:
        FileSystemError: `OUTPUT_RUN`, a run is there, whose record would be replaced; `OUTPUT_INPUT`, it is a folder of
            inputs, and results are named like them.
    """
    if held := _run_in(output):
        raise FileSystemError(
            "OUTPUT_RUN",
            "a run is in this folder, and results would replace its record",
            file=output,
            seen=held,
            fix="choose another -o",
        )
    place = output.resolve()
    for path in inputs:
        if path is not None and place == (path if path.is_dir() else path.parent).resolve():
            raise FileSystemError(
                "OUTPUT_INPUT",
                "results would be written among the files that are read, over those of the same names",
                file=output,
                seen=path,
                fix="choose another -o",
            )


def _run_in(folder: Path) -> str:
    """The files that make this a run's folder, in words; empty where it is none."""
    for names in _OF_A_RUN:
        if all((folder / name).is_file() for name in names):
            return " and ".join(names)
    try:
        record = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    except SteadyError:  # half of a record is nobody's
        return ""
    return "run.json of nnunet train" if isinstance(record, dict) and "status" in record else ""
