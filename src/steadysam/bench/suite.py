"""A suite: which methods are trained and scored, on which targets, with which prompts and seeds; one TOML file.

name = "spd"                       # of the suite
seeds = [0, 1, 2]

[targets.LV]                       # folder below --data, and the structure
dataset = "Dataset901_ACDC"
label = "LV"

[prompts.noisy]                    # prompt sets of the test; `training` names the one for training
simulator = "paper"

[run]                              # configuration that all runs share, as for `steadysam train`
preprocess.size = 96

[runs.spd]                         # what is trained
method.name = "spd"

[rows."SPD"]                       # what is scored: a line of the table
run = "spd"

[claims."SPD before SAM-Tuning"]   # what it was written to find out
rows = { "SPD" = 1, "SAM-Tuning" = -1 }

A suite may say `extends = "other.toml"`, a file beside it, and then only what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from steadysam.bench.claims import Claim
from steadysam.bench.training_specs import RunSpec
from steadysam.config import merged, read_config, validated
from steadysam.errors import ConfigError
from steadysam.files import slug
from steadysam.methods import METHODS
from steadysam.methods.contract import FrozenConfig
from steadysam.prompts.corrupt import CORRUPTIONS
from steadysam.prompts.simulate import SIMULATORS


class Target(FrozenConfig):
    """A structure of a data set.

    Args:
        dataset: folder below the folder of data sets.
        label: as in `DataConfig`.
        scribbles: prompt set -> where the annotators' strokes lie and which value marks this structure.
    """

    dataset: str
    label: str = "all"
    scribbles: dict[str, Scribbles] = {}


class Scribbles(FrozenConfig):
    """Label volumes of strokes, named like the cases, in a folder of the data set."""

    folder: str
    value: int
    per_slice: int = Field(default=3, ge=1)
    ignore: tuple[int, ...] = (0,)


class PromptSpec(FrozenConfig):
    """One prompt set, frozen per target and seed.

    Args:
        simulator, options: a row of `SIMULATORS`; None for strokes that the targets name.
        base, corruption, severity: instead, another set made worse by a row of `CORRUPTIONS`.
        nothing: instead, no prompt at all, for suites of methods that need none.
        oracle: the set says where the truth is: an upper bound, never to be mixed with the other lanes.
        noise, level: the curve that this set is a point of, and where on it.
        seeds: the seeds with which rows are scored on it; without it those of the row.
    """

    simulator: str | None = None
    options: dict[str, Any] = {}
    base: str | None = None
    corruption: str | None = None
    severity: float = Field(default=0.0, ge=0, le=1)
    oracle: bool = False
    noise: str = ""
    level: float = 0.0
    seeds: tuple[int, ...] | None = None
    nothing: bool = False

    @model_validator(mode="after")
    def _known(self) -> PromptSpec:
        if self.nothing and (self.simulator is not None or self.base is not None):
            raise ValueError("nothing = true leaves no room for a simulator or a base")
        if self.simulator is not None and self.simulator not in SIMULATORS:
            raise ValueError(f"no simulator {self.simulator!r}; there are: {', '.join(SIMULATORS)}")
        if (self.base is None) != (self.corruption is None):
            raise ValueError("base and corruption belong together")
        if self.corruption is not None and self.corruption not in CORRUPTIONS:
            raise ValueError(f"no corruption {self.corruption!r}; there are: {', '.join(CORRUPTIONS)}")
        return self


class PointsFrom(FrozenConfig):
    """The points that a run of the suite gives to its own decoder, instead of the raw ones."""

    run: str
    settings: dict[str, Any] = {}


class Place(FrozenConfig):
    """A point of a figure; see `RowSpec`."""

    figure: str
    x: int | float | str
    column: str = ""


class RowSpec(FrozenConfig):
    """A line of the table.

    Args:
        run: a key of `runs`.
        settings: of the method, at test time only; tables are merged with the run's.
        points: `all`, `random:K` (K of each slice), or those that another run chose.
        prompts: the prompt sets that it is scored with; without it the suite's first.
        coarse: the row whose masks it refines.
        group: where it stands in the table, for example `no prompts`.
        figure, x: the figure that this row is a point of, and where on its axis: a number or a word.
        column: the line of the figure that it is a point of; with words as x, the column of a table instead.
        also: further figures that it is a point of.
        detail_from: `another` takes the images at the second size, of which a method such as LDFSAM makes its prompts,
            from the next test case of another patient: a control that tells what prompts contribute.
        seeds: as for runs.
        targets: those that it is scored on; without it all of the suite.
    """

    run: str
    settings: dict[str, Any] = {}
    points: Annotated[str, Field(pattern=r"^(all|random:[1-9]\d*)$")] | PointsFrom = "all"
    prompts: tuple[str, ...] = ()
    coarse: str | None = None
    group: str = ""
    figure: str = ""
    x: int | float | str | None = None
    column: str = ""
    also: tuple[Place, ...] = ()
    detail_from: Literal["own", "another"] = "own"
    seeds: tuple[int, ...] | None = None
    targets: tuple[str, ...] = ()


SHOWN_SOMETIMES = ("column", "also")  # facts that a cell has only where the suite says something


def places_of(row: RowSpec) -> dict[str, Any]:
    """The facts of a cell that say in which figures it stands."""
    facts: dict[str, Any] = {"figure": row.figure, "x": row.x}
    facts |= {"column": row.column} if row.column else {}
    return facts | ({"also": [place.model_dump(mode="json") for place in row.also]} if row.also else {})


class Sweep(FrozenConfig):
    """Learning rates to choose from, once, by the loss on the validation cases of the targets named."""

    rates: tuple[float, ...] = ()
    targets: tuple[str, ...] = ()
    seed: int = 0


class Suite(FrozenConfig):
    """The whole file; `training` is the prompt set that runs are trained with."""

    name: str
    about: str = ""
    seeds: tuple[int, ...] = (0,)
    evaluation_size: int = Field(default=512, ge=0)
    training: str = "noisy"
    targets: dict[str, Target]
    prompts: dict[str, PromptSpec]
    run: dict[str, dict[str, Any]] = {}
    runs: dict[str, RunSpec]
    rows: dict[str, RowSpec]
    sweep: Sweep = Sweep()
    claims: dict[str, Claim] = {}

    @model_validator(mode="after")
    def _names_exist(self) -> Suite:
        _known("training", [self.training], self.prompts)
        _known("sweep.targets", self.sweep.targets, self.targets)
        for kind in ("targets", "prompts", "runs", "rows"):
            _differ_as_files(kind, getattr(self, kind))
        for name, spec in self.prompts.items():
            _known(f"prompts.{name}.base", [spec.base], self.prompts)
            if self._strokes(name) and not any(name in target.scribbles for target in self.targets.values()):
                raise ValueError(
                    f"prompts.{name}: neither a simulator nor nothing = true, and no target has scribbles.{name}"
                )
        for name, run in self.runs.items():
            if run.nnunet is None:
                _known(f"runs.{name}.method.name", [run.method.get("name", "")], METHODS)
            _known(f"runs.{name}.start", [run.start], self.runs)
            _known(f"runs.{name}.begin", [run.begin], self.runs)
            _known(f"runs.{name}.like", [run.like], self.runs)
        for name, row in self.rows.items():
            _known(f"rows.{name}.run", [row.run], self.runs)
            _known(f"rows.{name}.coarse", [row.coarse], self.rows)
            _known(f"rows.{name}.prompts", row.prompts, self.prompts)
            _known(f"rows.{name}.targets", row.targets, self.targets)
            if isinstance(row.points, PointsFrom):
                _known(f"rows.{name}.points.run", [row.points.run], self.runs)
        for name, claim in self.claims.items():
            _known(f"claims.{name}.rows", [term.row for term in claim.terms.values()], self.rows)
            _known(f"claims.{name}.rows", [term.prompts for term in claim.terms.values()], self.prompts)
            _known(f"claims.{name}.given", [claim.given], self.claims)
        return self

    def prompts_of(self, row: str, target: str, seed: int) -> tuple[str, ...]:
        """The prompt sets that a row is scored with on a target and seed; strokes only where there are some."""
        named = self.rows[row].prompts or (next(iter(self.prompts)),)
        named = tuple(name for name in named if seed in (self.prompts[name].seeds or (seed,)))
        return tuple(name for name in named if not self._strokes(name) or name in self.targets[target].scribbles)

    def _strokes(self, name: str) -> bool:
        spec = self.prompts[name]
        return spec.simulator is None and not spec.nothing and (spec.base is None or self._strokes(spec.base))

    def scores(self, row: str, target: str, seed: int) -> bool:
        """Whether a row is scored on a target with a seed: one of its own, else of its run's, else any of the suite."""
        spec = self.rows[row]
        seeds = spec.seeds or self.runs[spec.run].seeds or self.seeds
        return target in (spec.targets or self.targets) and seed in seeds


def read_suite(path: str | Path) -> Suite:
    """A suite file.

    Raises:
        InputError: `FILE_MISSING`. ConfigError: `CONFIG_SYNTAX`, `CONFIG_UNKNOWN_KEY`, `CONFIG_VALUE`.
    """
    values, seen = read_config(path), [Path(path).resolve()]
    while "extends" in values:
        base = seen[-1].parent / values.pop("extends")
        if base.resolve() in seen:
            raise ConfigError("CONFIG_VALUE", "suites that extend each other in a circle", file=base)
        seen.append(base.resolve())
        values = merged(read_config(base), values)
    return validated(Suite, values)


def _differ_as_files(kind: str, names: Any) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if seen.setdefault(slug(name), name) != name:
            raise ValueError(f"{kind}: {seen[slug(name)]!r} and {name!r} would be one file, {slug(name)}")


def _known(place: str, names: Any, table: Mapping[str, Any]) -> None:
    for name in names:
        if name is not None and name not in table:
            raise ValueError(f"{place}: there is no {name!r}; there are: {', '.join(table)}")
