"""What a table must say about predictions, taken from the `run.json` that predict writes beside its masks.

Read leniently: predictions of other tools have no record, or one of another shape; what is not found is None.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from steadysam.summary import PROVENANCE_KEYS

NO_PROMPTS = "none: the method looks at none"  # the prompt source; what else is said of prompts is then "none"
_OF_PROMPTS = (
    "prompt_source",
    "prompt_set",
    "seed",
    "noise_model",
    "empty_slice_rule",
    "empty_consensus_policy",
)
_NOTHING = object()
_NOISE_NAMES = ("simulator", "corruption", "step", "kind", "name")


def provenance_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The facts under `PROVENANCE_KEYS` (spd.md 8, check 21) of one set of predictions.

    Args:
        record: content of `run.json`: `method`, `config`, `prompted`, `prompt_set_hash`, `prompt_sources`, and
            `prompts` with `hash`, `sources` and `history`, per case or once for all; `prompt_set` with `seed`.

    Returns:
        Every key of `PROVENANCE_KEYS`; text or number, or None where the record says nothing. Of a method that looks
        at no prompts the source is `NO_PROMPTS` and all else that is about prompts "none", whatever files it was given.
    """
    prompts = list(_prompt_records(record))
    history = [step for entry in prompts for step in entry.get("history") or () if isinstance(step, Mapping)]
    config = _first_mapping(record, "config")
    found = {
        "method": record.get("method"),
        "prompt_source": _join(record.get("prompt_sources"))
        or _join(sorted({str(s) for entry in prompts for s in entry.get("sources") or ()})),
        "prompt_set": record.get("prompt_set_hash") or _join(_distinct(entry.get("hash") for entry in prompts)),
        "seed": _first(record.get("prompt_set"), "seed")
        or _join(_distinct(value for step in history for value in _values(step, "seed"))),
        "training_seed": _first(_first_mapping(config, "compute"), "seed"),
        "noise_model": _join(_distinct(_noise(step) for step in history)),
        "empty_slice_rule": _join(_distinct(v for step in history for v in _values(step, "empty_rule"))),
        "empty_consensus_policy": _first(record.get("overrides"), "empty")
        or _first(config, "empty_consensus", "empty_policy", "empty"),
        "split": _first(record, "split_id", "split") or _split(_first_mapping(config, "data")),
    }
    if record.get("prompted") is False:
        found |= dict.fromkeys(_OF_PROMPTS, "none") | {"prompt_source": NO_PROMPTS}
    return {key: found[key] for key in PROVENANCE_KEYS}


def slice_axes(record: Mapping[str, Any]) -> dict[str, int]:
    """Case name -> the slice axis with which predict cut it, where the record says so."""
    return {
        case["case"]: case["slice_axis"]
        for case in _cases(record)
        if isinstance(case.get("case"), str) and case.get("slice_axis") in (0, 1, 2)
    }


def target_label(record: Mapping[str, Any]) -> str | None:
    """The structure that was trained for (`data.label` of the configuration), where the record says so."""
    label = _first_mapping(_first_mapping(record, "config"), "data").get("label")
    return label if isinstance(label, str) else None


def mask_hashes(record: Mapping[str, Any]) -> dict[str, str]:
    """Case name -> SHA-256 of the mask file that predict wrote, where the record says so."""
    return _hashes(record, "mask_sha256")


def probability_hashes(record: Mapping[str, Any]) -> dict[str, str]:
    """Case name -> SHA-256 of the file of probabilities that predict wrote, where the record says so."""
    return _hashes(record, "probability_sha256")


def training_cases(record: Mapping[str, Any]) -> set[str]:
    """The cases whose image trained or validated the run that segmented it, where the record says so."""
    return {case["case"] for case in _cases(record) if case.get("part") in ("train", "val") and "case" in case}


def without_seconds(record: Mapping[str, Any]) -> dict[str, Any]:
    """A `run.json` without what is another number at every call."""
    kept = {key: value for key, value in record.items() if key != "seconds"}
    if "cases" in kept:
        kept["cases"] = [{k: v for k, v in case.items() if k != "seconds"} for case in _cases(record)]
    return kept


def attempted_cases(record: Mapping[str, Any]) -> set[str]:
    """The cases that a call of predict was about, whether or not it could segment them."""
    failures = record.get("failures")
    entries = [*_cases(record), *(failures if isinstance(failures, list) else ())]
    return {entry["case"] for entry in entries if isinstance(entry.get("case"), str)}


def combined_record(combined: Any, values: Collection[int] | None) -> dict[str, Any]:
    """What the runs of some labels say alike, as if one run had made these label maps.

    Args:
        combined: content of `combined.json`.
        values: numbers of the labels that are scored; None: all.

    Returns:
        As `run.json`; {} where the masks came from elsewhere. An image that any run has seen in training counts as
        seen. The hash of a case is that of its label map; if a mask was changed before it was put in, no file's.
    """
    combined = combined if isinstance(combined, Mapping) else {}
    maps, runs, labels = (_first_mapping(combined, key) for key in ("cases", "runs", "labels"))
    names = [name for name, value in labels.items() if values is None or value in values]
    records = {name: _first_mapping(runs, name) for name in names}
    if not records or not all(records.values()):
        return {}
    by_case = {name: {str(case.get("case")): case for case in _cases(record)} for name, record in records.items()}
    cases = []
    for case, entry in maps.items():
        own = [by_case[name].get(case) for name in names]
        if not isinstance(entry, Mapping) or not all(own):
            continue
        masks = _first_mapping(entry, "masks_sha256")
        same = all(masks.get(name) == by_case[name][case].get("mask_sha256") for name in names)
        parts = {known.get("part") for known in own if known} & {"train", "val"}
        seen = {"part": "train" if "train" in parts else "val"} if parts else {}
        cases.append({**_alike(own), **seen, "mask_sha256": entry.get("sha256") if same else "changed before"})
    facts = [{key: value for key, value in record.items() if key != "cases"} for record in records.values()]
    return {**_alike(facts), "cases": cases}


def _alike(values: Sequence[Any]) -> Any:
    """What mappings have in common, at any depth."""
    first = values[0]
    found = {}
    for key, value in first.items():
        others = [other.get(key, _NOTHING) for other in values[1:]]
        if isinstance(value, Mapping) and all(isinstance(other, Mapping) for other in others):
            found[key] = _alike([value, *others])
        elif all(other == value for other in others):
            found[key] = value
    return found


def _hashes(record: Mapping[str, Any], key: str) -> dict[str, str]:
    found = ((case.get("case"), case.get(key)) for case in _cases(record))
    return {case: sha256 for case, sha256 in found if isinstance(case, str) and isinstance(sha256, str)}


def _cases(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    cases = record.get("cases")
    for case in cases if isinstance(cases, list) else ():
        if isinstance(case, Mapping):
            yield case


def _prompt_records(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for holder in (record, *_cases(record)):
        if isinstance(holder.get("prompts"), Mapping):
            yield holder["prompts"]


def _noise(step: Mapping[str, Any]) -> str | None:
    """`paper`, `jitter 0.5` and so on: which simulator or corruption a step was, with its severity."""
    name = next((str(step[key]) for key in _NOISE_NAMES if step.get(key)), None)
    severity = step.get("severity")
    return name if name is None or severity is None else f"{name} {severity:g}"


def _split(data: Mapping[str, Any]) -> str | None:
    words = {"fold": data.get("fold"), "split seed": data.get("split_seed")}
    return ", ".join(f"{word} {value}" for word, value in words.items() if value is not None) or None


def _first_mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, Mapping) else {}


def _values(value: Any, *keys: str) -> Iterator[Any]:
    """Every plain value stored under one of `keys`, at any depth, in order."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in keys and isinstance(inner, (str, int, float)):
                yield inner
            else:
                yield from _values(inner, *keys)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, *keys)


def _first(value: Any, *keys: str) -> Any:
    return next((inner for key in keys for inner in _values(value, key)), None)


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value is not None))


def _join(values: Any) -> str | None:
    """One text for several values; a long list is shortened, with its length."""
    names = [str(value) for value in values] if isinstance(values, (list, tuple)) else []
    if not names:
        return None
    return " + ".join(names) if len(names) <= 4 else f"{' + '.join(names[:2])} + {len(names) - 2} more"
