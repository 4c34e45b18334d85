"""All cells of one target and seed: prompt sets frozen, runs trained, rows scored; what is finished is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from steadysam.bench import promptsets
from steadysam.bench.keys import decisive, prompt_values, row_values
from steadysam.bench.store import keep_run_record, run_path, run_record
from steadysam.bench.suite import PointsFrom, Suite
from steadysam.bench.training_specs import Drawn
from steadysam.config import RunConfig, make_config, merged
from steadysam.data.cases import Case, Dataset, read_dataset, resolve_label
from steadysam.data.splits import Split
from steadysam.files import content_key, slug
from steadysam.locks import alone_in
from steadysam.methods import METHODS
from steadysam.prompts.sets import set_hash, write_set
from steadysam.runs import Run, load_run
from steadysam.synthetic.dataset import LABEL, draw_pictures
from steadysam.training import train
from steadysam.training_data import read_case, slice_axis_of, split_of
from steadysam.types import Mask, Prompts, Volume

logger = logging.getLogger(__name__)

DRAWN = "drawn"  # in the folder of runs: those trained on drawn pictures, and the pictures; in the store their target


@dataclass(frozen=True)
class Folders:
    """Where things lie: data sets (read), runs and prompt sets (large), the store of cells (small)."""

    data: Path
    work: Path
    store: Path


@dataclass(frozen=True)
class Options:
    """How to run.

    Args:
        redo: make stale cells again instead of refusing them.
        device: instead of the suite's.
        rows, prompts: only these rows and prompt sets; () means all.
        rates: run -> learning rate chosen by the sweep.
        untrained: every run stays as it was before its first step, a floor for the trained one.
    """

    redo: bool = False
    device: str | None = None
    rows: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    rates: Mapping[str, float] = field(default_factory=dict)
    untrained: bool = False

    def takes(self, suite: Suite, row: str) -> bool:
        """Whether a row is wanted; nnU-Net, which is called from outside, has no untrained self."""
        outside = suite.runs[suite.rows[row].run].nnunet is not None
        return row in (self.rows or suite.rows) and not (self.untrained and outside)

    def prompt_sets(self, suite: Suite, row: str, target: str, seed: int) -> list[str]:
        """The prompt sets of a row that are wanted."""
        return [name for name in suite.prompts_of(row, target, seed) if name in (self.prompts or suite.prompts)]


@dataclass(eq=False)
class Group:
    """One target with one seed. Everything that is slow is computed when it is first asked for."""

    suite: Suite
    target: str
    seed: int
    folders: Folders
    options: Options = Options()

    @property
    def folder(self) -> Path:
        """Runs and prompt sets of this group."""
        return self.folders.work / f"{slug(self.target)}-s{self.seed}"

    @property
    def rows(self) -> list[str]:
        """The rows that are scored on this target with this seed."""
        wanted = [row for row in self.suite.rows if self.options.takes(self.suite, row)]
        return [row for row in wanted if self.suite.scores(row, self.target, self.seed)]

    def config(self, run: str) -> RunConfig:
        """The configuration of a run; what all runs share, then what the run says."""
        spec, shared = self.suite.runs[run], self.suite.run
        if spec.nnunet is not None:  # it has a configuration of its own; data and device are as for all others
            spec = spec.model_copy(update={"method": {"name": "all_empty"}})
        target = self.suite.targets[self.target]
        # a method's own optimiser or decay must survive when the suite sets epochs: tables are merged, not replaced
        own = METHODS[spec.method["name"]].Config().model_dump(mode="json")
        common = {key: merged(own, shared.get("method", {}))[key] for key in shared.get("method", {}) if key in own}
        method = merged(common, spec.method)
        rate = self.options.rates.get(spec.like or run)
        for key in spec.sweep if rate is not None else ():
            method = merged(method, nested(key, rate))
        seed = self.seed
        data = {"dataset": str(self.folders.data / target.dataset), "label": target.label}
        prompts: dict[str, Any] = {"folder": str(self.folder / "prompts" / slug(self.suite.training))}
        if spec.drawn is not None:
            data, prompts, seed = {"dataset": str(self._pictures(spec.drawn)), "label": LABEL}, {}, spec.drawn.seed
        values: dict[str, Any] = {
            "data": {**data, **_budget({**shared.get("data", {}), **spec.data}, seed)},
            "prompts": prompts,
            "preprocess": {**shared.get("preprocess", {}), **spec.preprocess},
            "backbone": {**shared.get("backbone", {}), **spec.backbone, "seed": seed},
            "method": method,
            "compute": {**shared.get("compute", {}), "seed": seed, "cache": str(self.folders.work / "cache")},
        }
        if self.options.device:
            values["compute"]["device"] = self.options.device
        if spec.start is not None:
            values["start"] = {"run": str(self.run_folder(spec.start)), "skip": list(spec.skip)}
        if spec.begin is not None:
            values["start"] = {**values.get("start", {}), "begin": str(self.run_folder(spec.begin))}
        config = make_config(values)
        return config.model_copy(update={"method": without_epochs(config.method)}) if self.options.untrained else config

    def run_folder(self, run: str) -> Path:
        """Where a run lies: in the group's folder, or in one for all groups if it is trained on drawn pictures."""
        return (self.folder if self.suite.runs[run].drawn is None else self.folders.work / DRAWN) / slug(run)

    def _pictures(self, drawn: Drawn) -> Path:
        return self.folders.work / DRAWN / f"pictures-{drawn.images}-{drawn.size}-s{drawn.seed}"

    def case(self, name: str) -> tuple[Case, Volume, Mask]:
        """A case with its image and truth, read once."""
        if name not in self._read:
            config, dataset = self.config(next(iter(self.suite.runs))), self.dataset
            values, axis = resolve_label(dataset, config.data.label), slice_axis_of(config, dataset)
            case = next(case for part in self.split.parts.values() for case in part if case.name == name)
            self._read[name] = (case, *read_case(case, values, axis, dataset))
        return self._read[name]

    @cached_property
    def dataset(self) -> Dataset:
        """The data set of the target."""
        config = self.config(next(iter(self.suite.runs)))
        return read_dataset(config.data.dataset, channel=config.data.channel)

    @cached_property
    def split(self) -> Split:
        """The split of the data set, by patient; without a limit on training patients."""
        config = self.config(next(iter(self.suite.runs)))
        data = config.data.model_copy(update={"train_patients": 0, "train_fraction": 1.0})
        return split_of(config.model_copy(update={"data": data}), self.dataset)

    @cached_property
    def _read(self) -> dict[str, tuple[Case, Volume, Mask]]:
        return {}

    @cached_property
    def _sets(self) -> dict[str, tuple[dict[str, Prompts], dict[str, Any]]]:
        return {}

    @cached_property
    def test(self) -> list[tuple[Case, Volume, Mask]]:
        """The test cases."""
        return [self.case(case.name) for case in self.split.test]

    def prompt_set(self, name: str) -> tuple[dict[str, Prompts], dict[str, Any]]:
        """A prompt set of the test cases, and what is known of it (with its `hash`)."""
        if name not in self._sets:  # many rows are scored with the same set
            self._sets[name] = self._drawn(name, [case.name for case, _, _ in self.test])
        found, meta = self._sets[name]
        return found, {**meta, "hash": set_hash({case: prompts.key() for case, prompts in found.items()})}

    def freeze_training_prompts(self) -> None:
        """Write the prompts that all runs are trained with."""
        name = self.suite.training
        folder = self.folder / "prompts" / slug(name)

        def make() -> None:
            found, meta = self._drawn(name, [case.name for part in self.split.parts.values() for case in part])
            write_set(folder, found, meta)

        _made_once(folder, make)

    def _drawn(self, name: str, wanted: Sequence[str]) -> tuple[dict[str, Prompts], dict[str, Any]]:
        if self.suite.prompts[name].nothing:  # then nobody looks at images, of which there may be many
            found, meta = promptsets.nothing(wanted, self.seed)
            return found, meta
        cases = {case: self.case(case)[1:] for case in wanted}
        folder = self.folders.data / self.suite.targets[self.target].dataset
        return promptsets.draw_set(self.suite, name, self.target, self.seed, cases, folder)

    def train(self, run: str, *, scored: bool = False) -> Path:
        """The run's folder, trained if it is not finished; the run that it starts from comes first.

        Args:
            scored: a cell will name its weights, so the store's record is made to be of them. A run that others only
                start from, trained once more on another machine, leaves the record to the cells that are there.
        """
        self.prepare(run)
        folder = train(self.config(run), self.run_folder(run), resume=True, wait=True)
        place = run_place(self.suite, run, self.target, self.seed)
        if scored or not run_path(self.folders.store, *place, run).exists():
            keep_run_record(self.folders.store, run_record(folder, *place, run))
        return folder

    def prepare(self, run: str) -> None:
        """What a run needs before it is trained: the runs that it starts from, and prompts, or pictures."""
        spec = self.suite.runs[run]
        for other in (spec.start, spec.begin):
            if other is not None:
                self.train(other)
        if spec.drawn is None:
            self.freeze_training_prompts()
            return
        folder, drawn = self._pictures(spec.drawn), spec.drawn
        _made_once(folder, lambda: draw_pictures(folder, drawn.images, drawn.seed, size=drawn.size))

    def key(self, row: str, prompts: str) -> str:
        """Hash of all settings that decide a cell; paths and devices are none of them."""
        spec = self.suite.rows[row]
        runs = [spec.run, *([spec.points.run] if isinstance(spec.points, PointsFrom) else [])]
        parts: list[Any] = [row_values(spec)]
        while runs:
            run = runs.pop()
            parts.append(decisive(self.config(run)))
            made = self.suite.runs[run]
            parts += [own.model_dump(mode="json") for own in (made.nnunet, made.drawn) if own is not None]
            runs += [other for other in (made.start, made.begin) if other is not None]
        if spec.coarse:
            parts.append(self.key(spec.coarse, prompts))
        chain, name = [], prompts
        while name is not None:
            chain.append(prompt_values(self.suite.prompts[name]))
            name = self.suite.prompts[name].base
        target = self.suite.targets[self.target].model_dump(mode="json")
        return content_key([parts, chain, target, self.seed, self.suite.evaluation_size])

    def loaded(self, run: str, settings: Mapping[str, Any]) -> Run:
        """A run, trained if need be, ready to segment."""
        return load_run(self.train(run, scored=True), self.config(run).compute.device, **settings)


def _budget(data: dict[str, Any], seed: int) -> dict[str, Any]:
    """A share of the training patients is drawn with the seed of the run; with all of them nothing is said."""
    draws = data.get("train_fraction", 1.0) < 1 and "subset_seed" not in data
    return {**data, "subset_seed": seed} if draws else data


def _made_once(folder: Path, make: Callable[[], object]) -> None:
    """Make a folder that several processes want, in one of them."""
    if folder.exists():
        return
    with alone_in(folder.parent, wait=True):
        if not folder.exists():
            make()


def run_place(suite: Suite, run: str, target: str, seed: int) -> tuple[str, int]:
    """Target and seed under which a run is recorded: those of its group, or of the drawn pictures it is trained on."""
    drawn = suite.runs[run].drawn
    return (target, seed) if drawn is None else (DRAWN, drawn.seed)


def without_epochs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a method whose stages all have no epoch."""
    return {
        key: without_epochs(value) if isinstance(value, Mapping) else 0 if key == "epochs" else value
        for key, value in settings.items()
    }


def nested(path: str, value: Any) -> dict[str, Any]:
    """`a.b`, 1 -> {"a": {"b": 1}}."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value
