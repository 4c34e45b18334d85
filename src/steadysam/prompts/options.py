"""Options of simulators and corruptions: keyword-only arguments, checked by their annotations when a table
calls.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from steadysam.errors import ConfigError

Share = Annotated[float, Ge(0), Le(1)]
NonNegative = Annotated[float, Ge(0)]


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only arguments of `function` and their defaults; the options that `--set` may name."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` turned into the annotated types of the keyword-only arguments of `function`.

    Raises:
        ConfigError: `PROMPT_OPTION` for a name that does not exist or a value that does not fit.
    """
    from pydantic import TypeAdapter, ValidationError

    known = defaults(function)
    hints = typing.get_type_hints(function, include_extras=True)
    name = getattr(function, "__name__", "function")
    checked = {}
    for key, value in options.items():
        if key not in known:
            raise ConfigError(
                "PROMPT_OPTION",
                f"{name} has no such option",
                seen=key,
                expected=", ".join(known) or "no options",
            )
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]["msg"]
            raise ConfigError(
                "PROMPT_OPTION",
                f"option {key} of {name} does not fit: {first}",
                seen=repr(value)[:80],
                expected=f"something like {known[key]!r}",
            ) from error
    return checked


def with_checked_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose options are checked at every call; for rows of a table."""

    @functools.wraps(function)
    def call(*values: Any, **options: Any) -> Any:
        return function(*values, **check_options(function, options))

    return call


def entropy(generator: np.random.Generator) -> str:
    """What a fresh generator was seeded with, as hex, for the history; "" if it does not say."""
    seed = getattr(generator.bit_generator.seed_seq, "entropy", None)
    return f"{seed:x}" if isinstance(seed, int) else ""
