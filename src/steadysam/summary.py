"""From scored cases to the numbers of a table: means, counts of valid samples, intervals by patient.

Pure functions over `CaseScores`; nothing here reads files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from steadysam.errors import InputError
from steadysam.files import content_key
from steadysam.metrics import METRICS, CaseScores, SliceScore, VolumeScore, all_empty_scores
from steadysam.statistics import (
    cluster_bootstrap,
    group_means,
    table_violations,
)

PROVENANCE_KEYS = (
    "method",
    "prompt_source",
    "prompt_set",
    "seed",
    "training_seed",
    "noise_model",
    "empty_slice_rule",
    "empty_consensus_policy",
    "split",
)

_SliceValue = Callable[[SliceScore], float | None]
_VolumeValue = Callable[[VolumeScore], float | None]

_PER_SLICE: dict[str, _SliceValue] = {
    "dsc": lambda row: row.dsc,
    "iou": lambda row: row.iou,
    "dsc_positive": lambda row: None if row.true_empty else row.dsc,
    "iou_positive": lambda row: None if row.true_empty else row.iou,
    "fp_rate_empty": lambda row: float(not row.pred_empty) if row.true_empty else None,
    "tnr": lambda row: float(row.pred_empty) if row.true_empty else None,
    "hd95_px": lambda row: row.hd95_px,
    "asd_px": lambda row: row.asd_px,
    "assd_px": lambda row: row.assd_px,
    "hd95_penalised_px": lambda row: row.hd95_penalised_px,
    "hd95_mm": lambda row: row.hd95_mm,
    "asd_mm": lambda row: row.asd_mm,
    "assd_mm": lambda row: row.assd_mm,
}
_PER_VOLUME: dict[str, _VolumeValue] = {
    "volume_dice": lambda volume: volume.dice,
    "volume_hd95_mm": lambda volume: volume.hd95_mm,
    "volume_asd_mm": lambda volume: volume.asd_mm,
    "volume_assd_mm": lambda volume: volume.assd_mm,
}


class Origin(NamedTuple):
    """Where a sample comes from: its patient, and the training (seed) that its prediction is of."""

    patient: str
    training: int = 0


@dataclass(frozen=True)
class Estimate:
    """One metric over a test set; None where no sample is valid.

    Args:
        mean: mean over the valid samples (slices, or volumes for `volume_*`).
        n: valid samples; `n_undefined`: samples for which the metric does not exist.
        interval: 95 % bootstrap interval of `mean`, drawing patients and, where there are several, trainings.
        patient_mean: mean of the patients' means, with its interval; `n_patients` have a valid sample.
    """

    mean: float | None
    n: int
    n_undefined: int
    interval: tuple[float, float] | None
    patient_mean: float | None
    patient_interval: tuple[float, float] | None
    n_patients: int


@dataclass(frozen=True)
class Summary:
    """Everything that a table row or a report says about one set of predictions.

    Args:
        provenance: where the predictions came from, keys `PROVENANCE_KEYS`; None for what was not recorded.
        scores: metric name (`METRICS`) -> estimate.
        all_empty: the same metrics for a predictor that never marks anything (means only).
        violations: sanity rules that the row breaks; must be empty.
        notes: how to read the numbers.
    """

    provenance: Mapping[str, Any]
    n_cases: int
    n_patients: int
    n_slices: int
    n_empty_slices: int
    n_empty_volumes: int
    size: int
    scores: Mapping[str, Estimate]
    all_empty: Mapping[str, float | None]
    violations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=lambda: {name: unit for name, (_, unit) in METRICS.items()})

    @property
    def empty_share(self) -> float:
        """Share of slices without the target."""
        return self.n_empty_slices / self.n_slices

    def to_dict(self) -> dict[str, Any]:
        """JSON-able content of `metrics.json`."""
        values = asdict(self)
        values["empty_share"] = self.empty_share
        return values

    def row(self) -> dict[str, Any]:
        """One flat table row: provenance, counts, the mean of every metric, and valid counts as `NAME_n`."""
        row: dict[str, Any] = dict(self.provenance)
        row |= {"n_slices": self.n_slices, "n_cases": self.n_cases, "n_patients": self.n_patients}
        row |= {"empty_share": self.empty_share}
        for name, estimate in self.scores.items():
            row[name] = estimate.mean
            row[f"{name}_n"] = estimate.n
        return row


def summarise(
    cases: Sequence[CaseScores],
    patients: Mapping[str, str | Origin] | None = None,
    *,
    provenance: Mapping[str, Any] | None = None,
    size: int = 512,
    seed: int = 0,
    draws: int = 10_000,
) -> Summary:
    """Summarise scored cases.

    Args:
        cases: at least one.
        patients: case name -> patient, or its `Origin` where predictions are of several trainings; a case that is not
            listed is its own patient.
        provenance: recorded facts; keys other than `PROVENANCE_KEYS` are kept as they are.
        size: the grid of the pixel metrics, for the units line (0 means native).
        seed: of the bootstrap; each metric draws from its own generator.
        draws: bootstrap replicates.

    Raises:
        InputError: `EVAL_EMPTY` without cases.
    """
    if not cases:
        raise InputError("EVAL_EMPTY", "there is no case to summarise", expected="at least one")
    of = origins(cases, patients)
    rows = [row for case in cases for row in case.slices]
    scores = {name: _estimate(name, cases, of, seed, draws) for name in METRICS}
    empty = [all_empty_scores(case) for case in cases]
    dsc, iou = scores["dsc"].mean or 0.0, scores["iou"].mean or 0.0
    marked = sum(not (row.true_empty and row.pred_empty) for row in rows) / len(rows)
    return Summary(
        provenance={**dict.fromkeys(PROVENANCE_KEYS), **(provenance or {})},
        n_cases=len(cases),
        n_patients=len({origin.patient for origin in of.values()}),
        n_slices=len(rows),
        n_empty_slices=sum(row.true_empty for row in rows),
        n_empty_volumes=sum(case.volume.true_voxels == 0 for case in cases),
        size=size,
        scores=scores,
        all_empty={name: _mean(value for value, _ in samples(name, empty, of)) for name in METRICS},
        violations=tuple(table_violations(dsc, iou, marked)),
        notes=_notes(cases, scores, size),
    )


def samples(name: str, cases: Sequence[CaseScores], of: Mapping[str, Origin]) -> list[tuple[float | None, Origin]]:
    """The samples of metric `name`, one per slice or (for `volume_*`) per case, each with its origin."""
    if name in _PER_VOLUME:
        return [(_PER_VOLUME[name](case.volume), of[case.name]) for case in cases]
    return [(_PER_SLICE[name](row), of[case.name]) for case in cases for row in case.slices]


def _estimate(name: str, cases: Sequence[CaseScores], of: Mapping[str, Origin], seed: int, draws: int) -> Estimate:
    everything = samples(name, cases, of)
    valid = [(value, origin) for value, origin in everything if value is not None]
    if not valid:
        return Estimate(None, 0, len(everything), None, None, None, 0)
    values, groups = [value for value, _ in valid], [origin.patient for _, origin in valid]
    trainings = [origin.training for _, origin in valid]
    by_patient = group_means(values, groups)
    return Estimate(
        mean=_mean(values),
        n=len(valid),
        n_undefined=len(everything) - len(valid),
        interval=cluster_bootstrap(
            values, groups, generator_of(seed, name, "samples"), trainings=trainings, draws=draws
        ),
        patient_mean=_mean(by_patient.values()),
        patient_interval=cluster_bootstrap(
            values, groups, generator_of(seed, name, "patients"), trainings=trainings, of="clusters", draws=draws
        ),
        n_patients=len(by_patient),
    )


def origins(cases: Sequence[CaseScores], patients: Mapping[str, str | Origin] | None = None) -> dict[str, Origin]:
    """Case name -> origin, from what `summarise` takes as `patients`."""
    owners = {case.name: (patients or {}).get(case.name, case.name) for case in cases}
    return {name: Origin(owner) if isinstance(owner, str) else owner for name, owner in owners.items()}


def pool_trainings(
    trainings: Iterable[tuple[int, Sequence[CaseScores], Mapping[str, str]]],
) -> tuple[list[CaseScores], dict[str, Origin]]:
    """The cases of several trainings as those of one set, each under a name of its own, and their origins.

    Args:
        trainings: seed, cases, case name -> patient, who is the same one for all seeds.
    """
    cases, of = [], {}
    for seed, scored, patients in trainings:
        for case in scored:
            cases.append(replace(case, name=f"{case.name}#{seed}"))
            of[cases[-1].name] = Origin(patients.get(case.name, case.name), seed)
    return cases, of


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def generator_of(*words: object) -> np.random.Generator:
    """A generator that depends on `words` only, so that intervals do not depend on each other."""
    return np.random.default_rng(int(content_key([str(word) for word in words])[:16], 16))


def _notes(cases: Sequence[CaseScores], scores: Mapping[str, Estimate], size: int) -> tuple[str, ...]:
    grid = f"the slice stretched to {size} x {size}" if size else "the native slice"
    surface = scores["hd95_px"]
    notes = [
        f"dsc, iou and px values are taken on {grid}; mm values and volume Dice on the native grid.",
        "A slice on which target and prediction are both empty scores 1: compare dsc with the all-empty row.",
        f"Surface distances in px exist on {surface.n} of {surface.n + surface.n_undefined} slices "
        "(both masks non-empty); predicting nothing hides errors from them, hd95_penalised_px does not.",
    ]
    without = sum(case.spacing_mm is None for case in cases)
    if without:
        notes.append(
            f"METRIC_NO_SPACING: {without} of {len(cases)} cases are pictures without physical spacing; "
            "their mm values are undefined."
        )
    return tuple(notes)
