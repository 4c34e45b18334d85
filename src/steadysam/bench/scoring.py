"""Score the rows of a suite on one target and seed: what a row does to prompts and masks, and what a cell records."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from steadysam.bench import promptsets
from steadysam.bench.evidence import Evidence
from steadysam.bench.group import Group
from steadysam.bench.outside import NnUnetSegmenter
from steadysam.bench.store import Cell, cell_path, read_cell, write_cell
from steadysam.bench.suite import SHOWN_SOMETIMES, PointsFrom, RowSpec, places_of
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import ConfigError, SteadyError
from steadysam.evaluate import evaluate_case
from steadysam.methods.contract import FrozenConfig, traits_of
from steadysam.runs import Run
from steadysam.segmenting import Result, segment
from steadysam.training import computing
from steadysam.types import Mask, Prompts, Volume

logger = logging.getLogger(__name__)


def score_group(group: Group, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Score all cells of the group; a cell that fails stops no other, and is told in the result.

    Args:
        tell: called with a line for every cell.
    """
    failures: list[dict[str, Any]] = []
    for row in group.rows:
        for prompts in group.options.prompt_sets(group.suite, row, group.target, group.seed):
            place = f"{group.target}, seed {group.seed}: {row}, {prompts}"
            try:
                with computing(group.config(group.suite.rows[row].run).compute):
                    made = score(group, row, prompts)
            except SteadyError as error:
                failures.append({"cell": place, **error.to_dict()})
                logger.error("%s: %s", place, error)
            else:
                tell(place + ("" if made else " (kept)"))
    return failures


def score(group: Group, row: str, prompts: str) -> bool:
    """Score one cell; False if it was there already.

    Raises:
        ConfigError: `BENCH_STALE` if a cell with other settings is there and `redo` is off.
    """
    key = group.key(row, prompts)
    path = cell_path(group.folders.store, group.target, group.seed, row, prompts)
    if path.exists():
        kept = read_cell(path)
        if kept.key == key:
            before = {name: value for name, value in kept.facts.items() if name not in SHOWN_SOMETIMES}
            if (facts := {**before, **_place(group, row, prompts)}) != kept.facts:
                write_cell(group.folders.store, replace(kept, facts=facts))  # the suite shows it elsewhere now
            return False
        if not group.options.redo:
            raise ConfigError(
                "BENCH_STALE",
                "this cell was made with other settings",
                file=path,
                fix="pass --redo to make such cells again, or choose another -o",
            )
    write_cell(group.folders.store, _scored(group, row, prompts, key))
    return True


def segmenter_of(group: Group, row: str, prompts: str) -> RowSegmenter | NnUnetSegmenter:
    """What turns a case into the row's mask; trains what is needed."""
    spec = group.suite.rows[row]
    if group.suite.runs[spec.run].nnunet is not None:
        return NnUnetSegmenter(group, spec.run)
    if spec.coarse is not None:
        coarse = segmenter_of(group, spec.coarse, prompts)
        return RowSegmenter(group, row, spec, group.loaded(spec.run, spec.settings), None, coarse)
    chooser = None
    if isinstance(spec.points, PointsFrom):
        chooser = group.loaded(spec.points.run, spec.points.settings)
    return RowSegmenter(group, row, spec, group.loaded(spec.run, spec.settings), chooser, None)


@dataclass(eq=False)
class RowSegmenter:
    """Calls a run as a row of the table says."""

    group: Group
    row: str
    spec: RowSpec
    run: Run
    chooser: Run | None
    coarse: RowSegmenter | NnUnetSegmenter | None

    @property
    def settings(self) -> FrozenConfig:
        """Those of the run's method, with the row's."""
        return self.run.settings

    def facts(self) -> dict[str, Any]:
        """What a cell records of the run."""
        record, config = self.run.record, self.run.config
        return {
            "method": config.method_name,
            "prompted": traits_of(self.run.method, self.run.settings).prompted,
            "empty_consensus_policy": getattr(self.run.settings, "empty", None),
            "training_seed": self.group.seed if record.get("stages") else None,
            "size": config.preprocess.size,
            "backbone": config.backbone.name,
            "weights_sha256": record["weights_sha256"],
        }

    def __call__(self, case: str, volume: Volume, prompts: Prompts) -> tuple[Mask, Prompts, Result | None]:
        """The mask, the prompts that the run was given, and its whole result.

        A case without a prompt is left empty; there is no result then.
        """
        cache = EmbeddingCache(self.group.folders.work / "cache")
        rough = None if self.coarse is None else self.coarse(case, volume, prompts)[0]
        traits = traits_of(self.run.method, self.run.settings)
        if self.chooser is not None:
            found = segment(self.chooser, volume, prompts, cache=cache)
            prompts = promptsets.chosen_points(found.points, prompts, volume.grid)
        elif isinstance(self.spec.points, str) and self.spec.points != "all":
            count = int(self.spec.points.partition(":")[2])
            generator = promptsets.generator_for(self.group.seed, "some points", case)
            prompts = promptsets.some_points(prompts, volume.grid, count, generator)
        if not traits.prompted:
            prompts = Prompts()
        elif not (traits.boxes and prompts.boxes) and not any(p.sign == "positive" for p in prompts.points):
            return empty_mask(volume), prompts, None
        detail = None if self.spec.detail_from == "own" else self._next(case)
        result = segment(self.run, volume, prompts, cache=cache, coarse=rough, detail=detail)
        return result.mask, prompts, result

    def _next(self, case: str) -> Volume:
        """The image of the next test case of another patient, from the first one on behind the last.

        A patient's own next picture would show nearly the same.

        Raises:
            ConfigError: `DETAIL_ONE_PATIENT`.
        """
        cases = self.group.test
        here = [known.name for known, _, _ in cases].index(case)
        for known, volume, _ in (*cases[here + 1 :], *cases[:here]):
            if known.patient != cases[here][0].patient:
                return volume
        raise ConfigError(
            "DETAIL_ONE_PATIENT",
            'detail_from = "another" needs a test case of another patient',
            seen=f"patient {cases[here][0].patient} only",
        )


def empty_mask(volume: Volume) -> Mask:
    """Nothing marked."""
    return Mask(np.zeros(volume.grid.shape, bool), volume.grid)


def _scored(group: Group, row: str, prompts: str, key: str) -> Cell:
    spec = group.suite.rows[row]
    segmenter = segmenter_of(group, row, prompts)
    scores, points, evidence, right = [], 0, Evidence(), []
    given, meta = group.prompt_set(prompts)
    for case, volume, mask in group.test:
        found, used, result = segmenter(case.name, volume, given[case.name])
        points += len(used)
        if result is not None:
            evidence.add(result, used, mask)
            evidence.add_boxes(case.name, result, mask, getattr(segmenter, "settings", None))
        if not volume.has_physical_spacing:
            right.append(float((found.array == mask.array).mean()))
        size, physical = group.suite.evaluation_size, volume.has_physical_spacing
        scores.append(evaluate_case(found.array, mask.array, volume.grid, size, name=case.name, physical=physical))
    noise = promptsets.noise_model(meta)
    facts = {
        **segmenter.facts(),
        **_place(group, row, prompts),
        "settings": spec.settings,
        "points": spec.points if isinstance(spec.points, str) else spec.points.model_dump(mode="json"),
        "coarse": spec.coarse,
        "prompt_sources": sorted({source for p in given.values() for source in p.sources}),
        "prompt_set": meta["hash"],
        "noise_model": noise,
        "empty_slice_rule": meta["options"].get("empty_rule", "no prompts") if noise else None,
        "oracle": meta["oracle"],
        "prompt_seed": group.seed,
        "split": f"{group.split.rule}, by patient",
        "evaluation_size": group.suite.evaluation_size,
        "run": spec.run,
        "prompts_given": points,
        "evidence": evidence.to_dict(),
        **({"pixel_accuracy": round(float(np.mean(right)), 5)} if right else {}),
    }
    patients = {case.name: case.patient for case, _, _ in group.test}
    return Cell(group.target, group.seed, row, prompts, facts, key, patients, tuple(scores))


def _place(group: Group, row: str, prompts: str) -> dict[str, Any]:
    """Where tables and figures show a cell; decides no score."""
    spec, given = group.suite.rows[row], group.suite.prompts[prompts]
    places = ((group.suite.targets, group.target), (group.suite.prompts, prompts), (group.suite.rows, row))
    return {
        "group": spec.group,
        **places_of(spec),
        "order": [list(table).index(name) for table, name in places],
        "noise": [given.noise, given.level],
        "base": given.base,
    }
