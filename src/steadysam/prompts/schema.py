"""The shape of our prompt file, version 1; unknown fields, NaN and loose types are refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steadysam.errors import InputError
from steadysam.types import PromptSource, Sign

FORMAT, VERSION = "steadysam-prompts", 1
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
_Text = Field("", max_length=1000)


class ImageEntry(BaseModel):
    """The image that the prompts belong to; `grid` is the hash of shape and affine."""

    model_config = _STRICT
    name: str = _Text
    shape: list[int] | None = Field(None, min_length=3, max_length=3)
    grid: str = _Text


class PointEntry(BaseModel):
    """One point; `coordinates` in the file's frame."""

    model_config = _STRICT
    id: str = Field(min_length=1, max_length=200)
    kind: Literal["point"]
    coordinates: list[float] = Field(min_length=3, max_length=3)
    sign: Sign = "positive"
    label: str = _Text
    source: PromptSource | None = None
    annotator: str = _Text
    description: str = _Text


class BoxEntry(BaseModel):
    """One box: `coordinates` are two corners (smallest, largest), or `centre` and three `half_axes` are
    given.
    """

    model_config = _STRICT
    id: str = Field(min_length=1, max_length=200)
    kind: Literal["box"]
    coordinates: list[list[float]] | None = None
    centre: list[float] | None = None
    half_axes: list[list[float]] | None = None
    label: str = _Text
    source: PromptSource | None = None
    annotator: str = _Text
    description: str = _Text


class PromptFile(BaseModel):
    """The top level; rows are checked one by one because their kind decides their fields."""

    model_config = _STRICT
    format: Literal["steadysam-prompts"]
    version: Literal[1]
    frame: Literal["RAS", "LPS", "ijk"]
    source: PromptSource | None = None
    image: ImageEntry = Field(default_factory=lambda: ImageEntry(shape=None))
    prompts: list[dict[str, Any]]
    history: list[dict[str, Any]] = []


def parse(model: type[Any], value: Any, path: Any, pointer: str = "") -> Any:
    """`value` as `model`.

    Raises:
        InputError: `PROMPT_SCHEMA` with the JSON pointer of the first wrong field.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = pointer + "".join(f"/{part}" for part in first["loc"])
        seen = None if first["type"] == "missing" else ascii(first["input"])[:80]
        raise InputError(
            "PROMPT_SCHEMA",
            f"{where or '/'}: {first['msg']}",
            file=path,
            seen=seen,
            expected="see docs/formats.md, prompt files",
        ) from error
