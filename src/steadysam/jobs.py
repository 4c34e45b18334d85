"""The cases of a call: images paired with their prompt files and masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steadysam.data.cases import image_cases
from steadysam.errors import InputError
from steadysam.evaluate import listed
from steadysam.prompts.sets import find_prompt_file
from steadysam.runs import Run

Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Job:
    """One case to segment: files in, name of the outputs; `coarse` is a mask to be refined."""

    name: str
    image: Path
    prompts: Path | None = None
    coarse: Path | None = None


def find_jobs(
    image: str | Path, prompts: str | Path | None = None, channel: int = 0, coarse: str | Path | None = None
) -> list[Job]:
    """Pair images with prompt files and coarse masks: a file with a file, the cases of a folder with a folder of them.

    A case that lacks what its method needs is a job that fails alone.

    Raises:
        InputError: `FILE_MISSING`, `DATA_EMPTY`, `PROMPT_CASE_UNKNOWN` (a folder of images needs a folder of prompts).
    """
    image = Path(image)
    prompts, coarse = (None if path is None else Path(path) for path in (prompts, coarse))
    for path in (image, prompts, coarse):
        if path is not None and not path.exists():
            raise InputError("FILE_MISSING", "no such file or folder", file=path, fix="check the path")
    cases = image_cases(image, channel)
    for flag, given, what in (("--prompts", prompts, "prompt files"), ("--coarse", coarse, "masks")):
        if given is not None and image.is_dir() and not given.is_dir():
            raise InputError(
                "PROMPT_CASE_UNKNOWN",
                f"a folder of images needs a folder of {what} named like the cases",
                file=given,
                fix=f"pass the folder with {flag}",
            )
    masks = dict(image_cases(coarse, channel)) if coarse is not None and coarse.is_dir() else {}
    return [
        Job(
            name,
            path,
            find_prompt_file(prompts, name) if prompts is not None and prompts.is_dir() else prompts,
            masks.get(name) if masks else coarse,
        )
        for name, path in cases
    ]


def jobs_of_part(run: Run, jobs: Sequence[Job], part: Part) -> list[Job]:
    """The jobs whose case is in a part of the split that the run was trained with.

    Raises:
        InputError: `PREDICT_PART` if there is none.
    """
    named = set(run.record["data"].get("split", {}).get(part, ()))
    found = [job for job in jobs if job.name in named]
    if not found:
        raise InputError(
            "PREDICT_PART",
            f"no case here is in part {part!r} of this run",
            file=run.folder / "run.json",
            seen=listed([job.name for job in jobs], 5),
            expected=listed(sorted(named), 5),
            fix="name the folder of images that the run's data set has, such as imagesTr",
        )
    return found
