"""The cells of a store, pooled over seeds, in the order of the suite.

A pool is one row on one target with one prompt set. Its cases are those of all its seeds, under names of their own,
with their patients and seeds: for intervals patients are drawn, each with the slices of all seeds, and seeds, each with
all patients. A missing seed is a smaller pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from steadysam.bench.claims import Claim, kept_claims
from steadysam.bench.store import Cell
from steadysam.bench.store import cells as read_cells
from steadysam.bench.suite import SHOWN_SOMETIMES, Suite, places_of
from steadysam.files import read_json
from steadysam.metrics import CaseScores
from steadysam.summary import Origin, Summary, pool_trainings, summarise

NO_PROMPTS, NOISY, ORACLE = "no prompts", "noisy prompts", "oracle"
_LAST = 1_000_000


@dataclass(frozen=True, eq=False)
class Pool:
    """The cells of one row on one target with one prompt set, by seed."""

    cells: tuple[Cell, ...]

    @property
    def target(self) -> str:
        """The structure."""
        return self.cells[0].target

    @property
    def row(self) -> str:
        """The line of the table."""
        return self.cells[0].row

    @property
    def prompts(self) -> str:
        """Name of the prompt set."""
        return self.cells[0].prompts

    @property
    def seeds(self) -> tuple[int, ...]:
        """In order."""
        return tuple(cell.seed for cell in self.cells)

    @property
    def facts(self) -> Mapping[str, Any]:
        """Those of the first seed; `told` asks all of them."""
        return self.cells[0].facts

    @property
    def lane(self) -> str:
        """`oracle` where prompts say where the truth is, whatever the suite calls it; else the row's group."""
        facts = self.facts
        looks = facts.get("prompted", True) or facts.get("coarse") is not None
        if facts.get("group") == ORACLE or (facts.get("oracle") and looks):
            return ORACLE
        return facts.get("group") or (NOISY if looks else NO_PROMPTS)

    @property
    def blind(self) -> bool:
        """Whether prompts cannot matter: the scores are those of every prompt set."""
        return self.lane == NO_PROMPTS and not self.facts.get("prompted", True)

    @property
    def bare(self) -> bool:
        """Whether its prompt set holds no prompt; then nothing is to be said of prompts."""
        return self.facts.get("noise_model", "") is None

    @property
    def places(self) -> list[tuple[str, float | str | None, str]]:
        """Figure, x and column of every figure that it is a point of."""
        facts = self.facts
        own = [(facts["figure"], facts.get("x"), facts.get("column", ""))] if facts.get("figure") else []
        return own + [(place["figure"], place["x"], place["column"]) for place in facts.get("also", ())]

    @property
    def noise(self) -> tuple[str, float]:
        """The curve that its prompt set is a point of (or ""), and the level."""
        name, level = self.facts.get("noise") or ("", 0.0)
        return str(name), float(level)

    @property
    def cases(self) -> list[CaseScores]:
        """The cases of all seeds, each under a name of its own."""
        return self._pooled[0]

    @property
    def origins(self) -> dict[str, Origin]:
        """Name of a case -> patient and seed."""
        return self._pooled[1]

    @cached_property
    def _pooled(self) -> tuple[list[CaseScores], dict[str, Origin]]:
        return pool_trainings((cell.seed, cell.cases, cell.patients) for cell in self.cells)

    def told(self, key: str) -> list[Any]:
        """The different values of a fact over the seeds, without None."""
        values = [cell.facts.get(key) for cell in self.cells]
        return [value for n, value in enumerate(values) if value is not None and value not in values[:n]]

    def only(self, seeds: Iterable[int]) -> Pool:
        """The same with these seeds; the whole pool if it has none of them."""
        kept = tuple(cell for cell in self.cells if cell.seed in set(seeds))
        return Pool(kept or self.cells)


@dataclass(eq=False)
class Book:
    """A store as a report reads it; summaries are made once.

    Args:
        cells: in the order of the suite.
        runs: what `runs/*.json` say.
        sweeps, rates: losses of the learning rates that were tried, and those chosen.
        failures: cells that could not be made.
        claims: what the suite claims.
        draws, seed: of the bootstrap.
    """

    cells: tuple[Cell, ...]
    runs: tuple[Mapping[str, Any], ...] = ()
    sweeps: tuple[Mapping[str, Any], ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Mapping[str, Any], ...] = ()
    claims: Mapping[str, Claim] = field(default_factory=dict)
    draws: int = 2000
    seed: int = 0
    _summaries: dict[tuple[str, str, str, tuple[int, ...]], Summary] = field(default_factory=dict)

    @cached_property
    def pools(self) -> dict[tuple[str, str, str], Pool]:
        """(target, prompt set, row) -> pool, in order."""
        found: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault((cell.target, cell.prompts, cell.row), []).append(cell)
        return {key: Pool(tuple(sorted(cells, key=lambda cell: cell.seed))) for key, cells in found.items()}

    @property
    def targets(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(target for target, _, _ in self.pools))

    @property
    def rows(self) -> list[str]:
        """In order."""
        return _ordered(self.cells, 2, "row")

    @cached_property
    def main_sets(self) -> list[str]:
        """The prompt sets that have tables: neither a point of a noise curve (but the base of one) nor oracle."""
        bases = {pool.facts.get("base") for pool in self.pools.values()}
        names = _ordered(self.cells, 1, "prompts")
        plain = {pool.prompts for pool in self.pools.values() if not pool.noise[0] or pool.prompts in bases}
        rivals = {pool.prompts for pool in self.pools.values() if pool.lane != ORACLE}
        return [name for name in names if name in plain & rivals] or names

    def summary(self, pool: Pool) -> Summary:
        """Means and intervals of a pool."""
        key = (pool.target, pool.prompts, pool.row, pool.seeds)
        if key not in self._summaries:
            size = int(pool.facts.get("evaluation_size", 0))
            self._summaries[key] = summarise(pool.cases, pool.origins, size=size, draws=self.draws, seed=self.seed)
        return self._summaries[key]


def read_store(store: str | Path, *, suite: Suite | None = None, draws: int = 2000, seed: int = 0) -> Book:
    """Everything that a store holds.

    Args:
        suite: says anew how rows are shown (order, groups, figures, curves) and what is claimed; without it the store
            says so itself.

    Raises:
        InputError: `BENCH_EMPTY`, `BENCH_CELL`.
    """
    store = Path(store)
    found = list(read_cells(store))
    if suite is not None:
        found = [as_in_suite(cell, suite) for cell in found]
    rates = store / "rates.json"
    failures = store / "failures.json"
    return Book(
        cells=tuple(_sorted(found)),
        runs=_read_all(store / "runs"),
        sweeps=_read_all(store / "sweep"),
        rates=read_json(rates) if rates.is_file() else {},
        failures=tuple(read_json(failures)) if failures.is_file() else (),
        claims=kept_claims(store) if suite is None else suite.claims,
        draws=draws,
        seed=seed,
    )


def as_in_suite(cell: Cell, suite: Suite) -> Cell:
    """The cell with what a suite says today of how it is shown; what it does not know stays."""
    facts = dict(cell.facts)
    if row := suite.rows.get(cell.row):
        facts = {key: value for key, value in facts.items() if key not in SHOWN_SOMETIMES} | places_of(row)
        facts |= {"group": row.group}
    if spec := suite.prompts.get(cell.prompts):
        facts |= {"noise": [spec.noise, spec.level], "base": spec.base}
    tables = ((suite.targets, cell.target), (suite.prompts, cell.prompts), (suite.rows, cell.row))
    facts["order"] = [list(table).index(name) if name in table else _LAST for table, name in tables]
    return replace(cell, facts=facts)


def common_seeds(pools: Sequence[Pool]) -> tuple[int, ...]:
    """The seeds that all pools have."""
    shared = set(pools[0].seeds).intersection(*(pool.seeds for pool in pools))
    return tuple(sorted(shared))


def _sorted(cells: Sequence[Cell]) -> list[Cell]:
    targets, sets, rows = (_ordered(cells, n, name) for n, name in enumerate(("target", "prompts", "row")))
    key = [{name: n for n, name in enumerate(names)} for names in (targets, sets, rows)]
    return sorted(cells, key=lambda c: (key[0][c.target], key[1][c.prompts], key[2][c.row], c.seed))


def _ordered(cells: Sequence[Cell], index: int, name: str) -> list[str]:
    places: dict[str, int] = {}
    for cell in cells:
        order = cell.facts.get("order")
        known = getattr(cell, name)
        places[known] = min(places.get(known, _LAST), order[index] if order else _LAST)
    return sorted(places, key=lambda known: (places[known], known))


def _read_all(folder: Path) -> tuple[Mapping[str, Any], ...]:
    return tuple(read_json(path) for path in sorted(folder.glob("*.json")))
