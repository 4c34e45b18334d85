"""What decides a cell's scores, as values to hash; what came to the package later must not make old cells stale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steadysam.bench.suite import PromptSpec, RowSpec
from steadysam.config import RunConfig

# Settings that did not exist when the first stores were made, and what they were then. At that value they are left
# out, so that those cells keep their keys. Whoever adds a setting to an old table adds it here.
ADDED_LATER: Mapping[str, Any] = {
    "data.train_fraction": 1.0,
    "data.subset_seed": 0,
    "method.features": None,  # of spd
    "start.begin": None,
}
ADDED_TO_ROWS: Mapping[str, Any] = {"detail_from": "own"}
ADDED_TO_PROMPTS: Mapping[str, Any] = {"nothing": False}
# where tables and figures show a row, and with what it is scored: no part of its settings
_SHOWN = {"prompts", "group", "figure", "x", "column", "also", "seeds", "targets"}


def decisive(config: RunConfig) -> dict[str, Any]:
    """A configuration without what does not decide results: folders, device, cache."""
    values = config.model_dump(mode="json")
    values["data"]["dataset"] = Path(values["data"]["dataset"]).name
    values["prompts"]["folder"] = Path(values["prompts"]["folder"] or "").name
    values["start"]["run"] = Path(values["start"]["run"] or "").name
    begin = values["start"]["begin"]
    values["start"]["begin"] = None if begin is None else Path(begin).name
    values["compute"] = {key: values["compute"][key] for key in ("seed", "precision", "threads", "matmul")}
    return as_before(values, ADDED_LATER)


def row_values(spec: RowSpec) -> dict[str, Any]:
    """What a row does to its run, masks and prompts."""
    return as_before(spec.model_dump(mode="json", exclude=_SHOWN), ADDED_TO_ROWS)


def prompt_values(spec: PromptSpec) -> dict[str, Any]:
    """How a prompt set is made, but for the set that it is made of."""
    return as_before(spec.model_dump(mode="json", exclude={"noise", "level", "seeds"}), ADDED_TO_PROMPTS)


def as_before(values: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without the settings of `added` (dotted names) that have the values given there."""
    result = dict(values)
    for name, default in added.items():
        head, _, rest = name.partition(".")
        if rest and isinstance(result.get(head), Mapping):
            result[head] = as_before(result[head], {rest: default})
        elif not rest and head in result and result[head] == default:
            del result[head]
    return result
