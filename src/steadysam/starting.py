"""What a run starts from: weights of other runs, which must fit and must not have seen what judges this one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from steadysam.backbones.checkpoints import read_safetensors
from steadysam.checkpoints import load_into
from steadysam.config import RunConfig, read_config
from steadysam.data.splits import known_images, refuse_start_leaks
from steadysam.errors import CheckpointError, ConfigError
from steadysam.files import sha256_file
from steadysam.methods.contract import Stage
from steadysam.runs import read_record

logger = logging.getLogger(__name__)

_FITS_ALL_THE_SAME = (("data", "dataset"), ("data", "label"), ("method", "detector", "image_size"))


def start_from(
    config: RunConfig, model: nn.Module, stages: Sequence[Stage], data: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Load what `config.start` names into a model that is about to be trained.

    Args:
        model: changed in place.
        data: what the record of this run will say of its data.

    Returns:
        The run, the file in it and the hash of all weights that were loaded, for the record.

    Raises:
        ConfigError: `CONFIG_VALUE` for a `skip` of unknown stages, or without a run. CheckpointError: `RUN_MISSING`,
            `RUN_UNFINISHED`, `START_STAGES` if no stage that is trained here was trained in `begin`, or one of `skip`
            not in `run`, `START_SIZE`, `CKPT_SHAPE`. InputError: `DATA_LEAK_START`.
    """
    start, known = config.start, [stage.name for stage in stages]
    if unknown := set(start.skip) - set(known):
        raise ConfigError("CONFIG_VALUE", f"start.skip names {sorted(unknown)}; stages: {sorted(known)}")
    if start.skip and start.run is None:
        raise ConfigError("CONFIG_VALUE", "start.skip needs start.run", fix="name the run that has these stages")
    skipped: list[Path] = []
    paths: list[Path] = []
    if start.run is not None:
        other = Path(start.run)
        if read_record(other).get("status") != "finished" and not start.skip:
            raise CheckpointError(
                "RUN_UNFINISHED",
                "the run to start from has not finished",
                file=other,
                fix="finish it with `steadysam train … --continue`, or take its finished stages (start.skip)",
            )
        _warn_of_differences(config, other, _FITS_ALL_THE_SAME)
        skipped = [stage_file(other, name) for name in start.skip]
        _refuse_missing_stages(other, skipped)
        paths += [] if skipped else [other / "weights.safetensors"]
    if start.begin is not None:
        other = Path(start.begin)
        found = _first_weights(other, [name for name in known if name not in start.skip])
        _refuse_other_sizes(config, other, {path.stem for path in found})
        logger.info("stages that begin with those of %s: %s", other, ", ".join(path.stem for path in reversed(found)))
        paths += found
        _warn_of_differences(config, other, _FITS_ALL_THE_SAME[-1:])  # other data are what it is for
    loaded = []
    makers: dict[Path, None] = {}  # two stages may be of one run
    for path in (*paths, *skipped):
        load_into(model, read_safetensors(path), file=path, strict=False)
        maker = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        makers[maker] = None
        loaded.append({"run": maker.name, "file": path.relative_to(maker).as_posix(), "sha256": sha256_file(path)})
    for run in _with_ancestors(makers):
        _refuse_leaks(run, data)
    return loaded


def _refuse_leaks(maker: Path, data: Mapping[str, Any]) -> None:
    seen = read_record(maker).get("data")
    if seen is None:
        logger.warning("%s does not say what it was trained on: what it saw can't be checked", maker)
        return
    same = known_images(seen, data)  # whatever they are called, also in another data set of the same name
    if seen["dataset"] == data["dataset"]:  # older runs have no hashes
        same = {part: [*names, *(set(seen["split"][part]) - set(names))] for part, names in same.items()}
    refuse_start_leaks(same, data["split"], maker)


def _with_ancestors(makers: Iterable[Path]) -> list[Path]:
    """Runs, those that they started from, and so on: what any of them was trained on is in the weights."""
    runs = list(makers)
    for run in runs:  # grows on the way
        start = _start_of(run)
        for parent in (Path(start[key]) for key in ("run", "begin") if start.get(key)):
            if parent in runs:
                continue
            if (parent / "run.json").is_file():
                runs.append(parent)
            else:
                logger.warning("%s started from %s, which is gone: what that one saw can't be checked", run, parent)
    return runs


def _start_of(run: Path) -> Mapping[str, Any]:
    return read_config(run / "config.toml").get("start", {})


def _first_weights(other: Path, trained: Sequence[str]) -> list[Path]:
    """The weights of those stages that are trained here and were trained there; the first one's last.

    A later stage may have changed what an earlier one trains, which has to begin as it was after its own.
    """
    read_record(other)
    found = [path for path in (stage_file(other, name) for name in reversed(trained)) if path.exists()]
    if not found:
        raise CheckpointError(
            "START_STAGES",
            "no stage that is trained here has been trained there",
            file=other,
            seen=_stages_of(other),
            expected=" or ".join(trained) or "a stage that start.skip leaves to train",
            fix="begin with a run of this method, or of one that shares a stage with it",
        )
    return found


def _refuse_other_sizes(config: RunConfig, other: Path, stages: Collection[str]) -> None:
    """A detector begins with one of its own size; shapes would tell, but not in these words."""
    theirs = read_config(other / "config.toml")
    for key, stage in (("teacher", "teacher"), ("size", "student")):
        a, b = (_detector(method).get(key) for method in (config.method, theirs.get("method", {})))
        if stage in stages and a and b and a != b:
            raise CheckpointError(
                "START_SIZE",
                f"the {stage} there is a detector of another size",
                file=other,
                seen=f"{key} = {b!r}",
                expected=f"{key} = {a!r}, as here",
                fix=f"begin with a run of that size, or set the detector's {key} to {b!r}",
            )


def _detector(method: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table of the detector, which SPD has among its features."""
    return _at(method, ("detector",)) or _at(method, ("features", "detector")) or {}


def _refuse_missing_stages(other: Path, files: Sequence[Path]) -> None:
    if missing := [path.stem for path in files if not path.exists()]:
        raise CheckpointError(
            "START_STAGES",
            f"the run that is to have trained {' and '.join(missing)} has not",
            file=other,
            seen=_stages_of(other),
            expected=", ".join(path.stem for path in files),
            fix="name a run that has these stages, or take them out of start.skip",
        )


def _stages_of(run: Path) -> str:
    return ", ".join(sorted(path.stem for path in (run / "checkpoints").glob("*.safetensors"))) or "none"


def _warn_of_differences(config: RunConfig, other: Path, places: Sequence[Sequence[str]]) -> None:
    """What differs between a run and the one it starts from, where weights fit all the same."""
    theirs = read_config(other / "config.toml")
    mine = {"data": config.data.model_dump(mode="json"), "method": config.method}
    for place in places:
        a, b = (_at(values, place) for values in (mine, theirs))
        if place == ("data", "dataset") and a and b and Path(a).resolve() == Path(b).resolve():
            continue  # one folder by two names
        if a is not None and b is not None and a != b:
            logger.warning("%s was trained with %s = %s, here it is %s", other, ".".join(place), b, a)


def _at(values: Any, place: Sequence[str]) -> Any:
    for key in place:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def stage_file(run: Path, stage: str) -> Path:
    """The weights of a stage: those of the run, or of the run from which it took the stage over, and so on."""
    own = path = run / "checkpoints" / f"{stage}.safetensors"
    seen = {run}
    while not path.exists():
        start = _start_of(run)
        if stage not in start.get("skip", ()) or Path(start["run"]) in seen:
            return own
        run = Path(start["run"])
        seen.add(run)
        path = run / "checkpoints" / f"{stage}.safetensors"
    return path
