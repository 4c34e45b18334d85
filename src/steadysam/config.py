"""A run's configuration: one frozen value, one TOML file; unknown keys are refused with the nearest known one."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

from pydantic import Field, ValidationError, field_validator

from steadysam.backbones import BACKBONES
from steadysam.backbones.table import BackboneSpec
from steadysam.errors import ConfigError, InputError
from steadysam.methods import METHODS
from steadysam.methods.contract import FrozenConfig, traits_of

NO_BACKBONE = "none"
OWN_NETWORK_SIZE = 256  # pixels, for networks without a backbone; that of our own backbones

Checked = TypeVar("Checked", bound=FrozenConfig)


class DataConfig(FrozenConfig):
    """Which cases and which structure.

    Args:
        dataset: folder in nnU-Net v2 raw or MSD layout.
        label: one name or number of `dataset.json`, several joined by `+` (their union), or `all`; the command
            `train` knows `each`, too: a run per label.
        channel: channel number of multi-channel images.
        slice_axis: 0, 1, 2; without it the largest spacing decides.
        fold: fold of `splits_final.json`.
        split_seed, fractions: for the split by patient where the data set brings none.
        train_patients: use only the first so many training patients (0 = all), in the split's order.
        train_fraction: use a random share of the training patients, at least one; those of a smaller share are among
            those of a larger one.
        subset_seed: draws them.
    """

    LATER: ClassVar[Mapping[str, Any]] = {"train_fraction": 1.0, "subset_seed": 0}

    dataset: str
    label: str = "all"
    channel: int = Field(default=0, ge=0)
    slice_axis: Literal[0, 1, 2] | None = None
    fold: int | None = None
    split_seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    train_patients: int = Field(default=0, ge=0)
    train_fraction: float = Field(default=1.0, gt=0, le=1)
    subset_seed: int = Field(default=0, ge=0)


class PromptConfig(FrozenConfig):
    """Where the noisy prompts come from.

    Args:
        folder: prompt files named by case; without it `promptsTr` of the data set, else the simulator.
        simulator, seed, options: a row of `SIMULATORS`, drawn once and frozen in the run folder.
        outside: what to do with points outside the volume.
    """

    folder: str | None = None
    simulator: str = "paper"
    seed: int = 0
    options: dict[str, Any] = {}
    outside: Literal["error", "drop", "clip"] = "error"


class PreprocessConfig(FrozenConfig):
    """How slices become model inputs; see `steadysam.types.Preprocess`.

    Without a `size` it is 512, the paper's; with our own backbones the size that they were made for.
    """

    size: int = Field(default=512, ge=16)
    fit: Literal["stretch", "pad"] = "stretch"
    window: str = "percentile"
    norm: Literal["spd", "sam", "medsam"] = "spd"


class BackboneConfig(FrozenConfig):
    """A row of `steadysam models list`, a folder or a `.safetensors` file; `seed` draws weights from scratch."""

    name: str = "steadysam-tiny"
    seed: int = 0


class ComputeConfig(FrozenConfig):
    """How to compute.

    Args:
        seed: order of samples, augmentation, dropout, redrawn prompts.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, `mps`.
        precision: `no` (float32), `bf16` or `fp16` (mixed, CUDA).
        threads: CPU threads (0 = as torch chooses); results are the same bytes for the same number.
        matmul: `highest`, or `high` for TF32 on CUDA (torch's float32 matmul setting).
        cache: folder of the embedding cache; `auto` is `cache/` in STEADYSAM_HOME, `off` keeps it in memory.
    """

    seed: int = 0
    device: str = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    threads: int = Field(default=0, ge=0)
    matmul: Literal["highest", "high"] = "highest"
    cache: str = "auto"


class StartConfig(FrozenConfig):
    """Start from the weights of other runs.

    Args:
        run: a run whose final weights this one starts from.
        skip: instead, the stages that are taken from `run` as they are.
        begin: a run whose weights after each stage are those with which the same stage begins here. It may have been
            trained on other data, such as a detector on drawn pictures.
    """

    run: str | None = None
    skip: tuple[str, ...] = ()
    begin: str | None = None


class RunConfig(FrozenConfig):
    """Everything that decides a run. `method` is a table: its `name`, and the settings of that method."""

    data: DataConfig
    prompts: PromptConfig = PromptConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    backbone: BackboneConfig = BackboneConfig()
    method: dict[str, Any] = {"name": "spd"}
    compute: ComputeConfig = ComputeConfig()
    start: StartConfig = StartConfig()

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: dict[str, Any]) -> dict[str, Any]:
        name = value.get("name", "spd")
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}; there are: {', '.join(METHODS)}")
        return {**value, "name": name}

    @property
    def method_name(self) -> str:
        """A key of `METHODS`."""
        return self.method["name"]

    def method_config(self) -> FrozenConfig:
        """The method's own frozen settings."""
        settings = {key: value for key, value in self.method.items() if key != "name"}
        return METHODS[self.method_name].Config(**settings)


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Validate nested values, and fill in what follows from the backbone unless the values say otherwise.

    A from-scratch backbone is adapted in full, one with adapters by these if the method can. Our own backbones and
    those with adapters get their native image size, the latter also the normalisation of their weights. A method that
    brings its own network has no backbone.

    Raises:
        ConfigError: `CONFIG_UNKNOWN_KEY` (with the nearest known key) or `CONFIG_VALUE`.
    """
    config = validated(RunConfig, values)
    if not traits_of(METHODS[config.method_name]).backbone:
        config = config.model_copy(update={"backbone": BackboneConfig(name=NO_BACKBONE, seed=config.backbone.seed)})
        if "size" not in config.preprocess.model_fields_set:
            sized = config.preprocess.model_copy(update={"size": OWN_NETWORK_SIZE})
            config = config.model_copy(update={"preprocess": sized})
    spec = BACKBONES.get(config.backbone.name)
    if spec is not None and (spec.own or spec.adapted):
        native = {"size": spec.native_size, **({"norm": spec.norm} if spec.adapted else {})}
        unsaid = {key: value for key, value in native.items() if key not in config.preprocess.model_fields_set}
        config = config.model_copy(update={"preprocess": config.preprocess.model_copy(update=unsaid)})
    kind = METHODS[config.method_name].Config
    settings = {key: value for key, value in config.method.items() if key != "name"}
    if "adapt" in kind.model_fields and "adapt" not in settings and spec is not None:
        settings["adapt"] = "full" if spec.from_scratch else _adaptation(kind, spec)
    checked = validated(kind, settings, "method.")
    full = {"name": config.method_name, **checked.model_dump(mode="json")}
    return config.model_copy(update={"method": full})


def _adaptation(kind: type[FrozenConfig], spec: BackboneSpec) -> str:
    """How a pretrained encoder is adapted: by the adapters that it brings if the method can, else by its default."""
    field = kind.model_fields["adapt"]
    return "adapters" if spec.adapted and "adapters" in get_args(field.annotation) else field.default


def read_config(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file, not yet validated.

    Raises:
        InputError: `FILE_MISSING`. ConfigError: `CONFIG_SYNTAX`.
    """
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError("FILE_MISSING", "no such configuration file", file=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("CONFIG_SYNTAX", f"not valid TOML: {error}", file=path) from error


def apply_settings(values: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Put `section.key=value` settings into nested values; a value is TOML, or a plain string if it is not.

    Raises:
        ConfigError: `CONFIG_SYNTAX` for a setting without `=`.
    """
    result = json.loads(json.dumps(values))
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise ConfigError("CONFIG_SYNTAX", "a setting is section.key=value", seen=setting)
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, key = path.strip().split(".")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError("CONFIG_UNKNOWN_KEY", f"{parent!r} is a value, not a table", seen=setting)
        table[key] = value
    return result


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables of settings, `more` winning."""
    result = dict(base)
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """TOML of nested tables of JSON values; `None` is left out, as TOML has no such value."""
    lines = [f"{key} = {_toml(v)}" for key, v in values.items() if v is not None and not isinstance(v, Mapping)]
    for key, table in values.items():
        if isinstance(table, Mapping):
            lines.append(f"\n[{prefix}{key}]")
            lines.append(to_toml(table, f"{prefix}{key}.").rstrip("\n"))
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def validated(kind: type[Checked], values: Mapping[str, Any], prefix: str = "") -> Checked:
    """`values` as a `kind`, or a typed error that names the setting below `prefix`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    place = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _keys_at(kind, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        if prefix == "method." and (
            others := [n for n, m in METHODS.items() if place.removeprefix(prefix) in m.Config.model_fields]
        ):
            hint += f"; it is a setting of {', '.join(others)}: choose the method by --method or method.name"
        raise ConfigError("CONFIG_UNKNOWN_KEY", f"there is no setting {place!r}", fix=hint)
    if first["type"] == "missing":
        raise ConfigError("CONFIG_MISSING", f"setting {place!r} is needed")
    if not first["loc"]:  # a rule about the whole: the values would be pages long
        raise ConfigError("CONFIG_VALUE", first["msg"].removeprefix("Value error, "))
    raise ConfigError("CONFIG_VALUE", f"setting {place!r}: {first['msg']}", seen=repr(first.get("input")))


def _keys_at(kind: Any, path: Sequence[Any]) -> list[str]:
    """The keys of the table at `path` below a configuration class."""
    for part in path:
        kind = kind.model_fields[part].annotation
        kind = next((one for one in get_args(kind) if hasattr(one, "model_fields")), kind)  # a table that may be None
    return sorted(kind.model_fields)
