"""Frozen prompt sets: a folder of prompt files with a hash that every result names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadysam.errors import FileSystemError, InputError
from steadysam.files import content_key, new_folder, read_json, sha256_file, write_json
from steadysam.prompts.files import read_prompts, write_prompts
from steadysam.types import Grid, Prompts

SET_FILE = "promptset.json"
_FORMAT = "steadysam-promptset"
# in the order of preference, when several lie side by side
SUFFIXES = (".json", ".mrk.json", ".fcsv", ".csv", ".tsv", ".nii.gz", ".nii")


@dataclass(frozen=True)
class PromptSet:
    """A frozen set.

    Args:
        folder: where it lies.
        hash: names the content: which case has which prompts.
        meta: how it was made (simulator or corruption, options, seed).
        files: case name -> prompt file.
        keys: case name -> `Prompts.key()`.
        sources: distinct sources of all prompts.
    """

    folder: Path
    hash: str
    meta: Mapping[str, Any]
    files: Mapping[str, Path]
    keys: Mapping[str, str]
    sources: tuple[str, ...]

    def read(self, case: str, grid: Grid | None = None) -> Prompts:
        """The prompts of one case.

        Raises:
            InputError: `PROMPT_CASE_MISSING`, or whatever `read_prompts` raises.
        """
        if case not in self.files:
            raise InputError("PROMPT_CASE_MISSING", f"the set has no case {case}", file=self.folder)
        return read_prompts(self.files[case], grid)


def set_hash(keys: Mapping[str, str]) -> str:
    """The hash of a set from the keys of its cases."""
    return content_key(dict(sorted(keys.items())))


def write_set(folder: str | Path, prompts: Mapping[str, Prompts], meta: Mapping[str, Any]) -> PromptSet:
    """Write one file per case and `promptset.json`; the folder appears whole or not at all.

    Writing the same content to a folder that holds it already is no error.

    Raises:
        FileSystemError: `FS_EXISTS` if the folder exists with other content.
        InputError: `PROMPT_CASE_NAME` for a case name that cannot be a file name.
    """
    folder = Path(folder)
    for case in prompts:
        if not case or Path(case).name != case or case.startswith(".") or f"{case}.json" == SET_FILE:
            raise InputError("PROMPT_CASE_NAME", "this case name cannot be a file name", seen=ascii(case))
    keys = {case: prompts[case].key() for case in sorted(prompts)}
    if folder.exists():
        return _same_or_refuse(folder, keys)
    with new_folder(folder) as temporary:
        entries = {}
        for case in sorted(prompts):
            path = write_prompts(temporary / f"{case}.json", prompts[case])
            entries[case] = {
                "file": path.name,
                "sha256": sha256_file(path),
                "key": keys[case],
                "points": len(prompts[case].points),
                "boxes": len(prompts[case].boxes),
                "sources": list(prompts[case].sources),
            }
        record = {
            "format": _FORMAT,
            "version": 1,
            "hash": set_hash(keys),
            "sources": sorted({source for case in prompts.values() for source in case.sources}),
            "meta": dict(meta),
            "files": entries,
        }
        write_json(temporary / SET_FILE, record)
    return read_set(folder)


def read_set(folder: str | Path) -> PromptSet:
    """Read a frozen set and check that no file has changed.

    Raises:
        InputError: `PROMPT_SET_MISSING`, `PROMPT_SET_SCHEMA`, `PROMPT_SET_CHANGED`.
    """
    folder = Path(folder)
    path = folder / SET_FILE
    if not path.is_file():
        raise InputError(
            "PROMPT_SET_MISSING",
            f"this folder has no {SET_FILE}",
            file=folder,
            fix="make one with `prompts simulate`",
        )
    record = read_json(path)
    try:
        if (record["format"], record["version"]) != (_FORMAT, 1):
            raise KeyError("format")
        entries: dict[str, Any] = record["files"]
        keys = {case: str(entry["key"]) for case, entry in entries.items()}
        wanted = {case: (str(entry["file"]), str(entry["sha256"])) for case, entry in entries.items()}
        named, meta, sources = str(record["hash"]), dict(record["meta"]), tuple(map(str, record["sources"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("PROMPT_SET_SCHEMA", f"not a prompt set: {error}", file=path) from error
    for case, (name, digest) in wanted.items():
        file = folder / name
        if Path(name).name != name or not file.is_file() or sha256_file(file) != digest:
            raise _changed(file, f"the prompts of case {case} are not those that were frozen")
    if set_hash(keys) != named:
        raise _changed(path, "the hash does not fit the files")
    return PromptSet(folder, named, meta, {case: folder / name for case, (name, _) in wanted.items()}, keys, sources)


def find_prompt_file(folder: str | Path, case: str) -> Path | None:
    """The prompt file of `case` in a folder, frozen set or not; None if there is none."""
    for suffix in SUFFIXES:
        path = Path(folder) / f"{case}{suffix}"
        if path.is_file():
            return path
    return None


def _same_or_refuse(folder: Path, keys: Mapping[str, str]) -> PromptSet:
    if (folder / SET_FILE).is_file():
        there = read_set(folder)
        if there.hash == set_hash(keys):
            return there
    raise FileSystemError(
        "FS_EXISTS", "the folder exists already with other content", file=folder, fix="choose another name"
    )


def _changed(file: Path, what: str) -> InputError:
    return InputError(
        "PROMPT_SET_CHANGED", what, file=file, fix="restore the file, or freeze a new set under another name"
    )
