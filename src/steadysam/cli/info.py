"""`steadysam info`: what is here, from the same tables that the code uses."""

from __future__ import annotations

import ast
import json
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from steadysam import __version__
from steadysam.backbones.table import BACKBONES
from steadysam.metrics import METRICS
from steadysam.prompts.corrupt import CORRUPTIONS
from steadysam.prompts.simulate import SIMULATORS

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy", "nibabel", "SimpleITK")


def info(*, json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """List versions, methods, backbones, simulators, corruptions and metrics.

    Parameters
    ----------
    json_
        Print JSON for machines.
    """
    content = collect()
    if json_:
        print(json.dumps(content, indent=2))
        return
    console = Console()
    for section, rows in content.items():
        table = Table(section, "", box=None, show_header=True)
        for name, text in rows.items():
            table.add_row(name, text if isinstance(text, str) else "; ".join(text))
        console.print(table)


def collect() -> dict[str, dict[str, Any]]:
    """The content of `info --json`; imports no torch."""
    return {
        "versions": {"steadysam": __version__, **{name: _version(name) for name in _LIBRARIES}},
        "methods": methods(),
        "backbones": {name: spec.about for name, spec in BACKBONES.items()},
        "simulators": {name: _paragraph(function) for name, function in SIMULATORS.items()},
        "corruptions": {name: _paragraph(function) for name, function in CORRUPTIONS.items()},
        "metrics": dict(METRICS),
    }


def methods() -> dict[str, str]:
    """Names and first docstring lines of the rows of `METHODS`, read from the source: importing it needs torch."""
    spec = util.find_spec("steadysam")
    folder = Path((spec.submodule_search_locations or [""])[0] if spec else "") / "methods"
    rows: dict[str, str] = {}
    for node in ast.walk(ast.parse((folder / "__init__.py").read_text("utf-8"))):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Name):
                    file = folder / f"{value.id}.py"
                    file = file if file.exists() else folder / value.id / "__init__.py"
                    doc = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
                    rows[str(key.value)] = doc.splitlines()[0]
    return rows


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _paragraph(function: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((function.__doc__ or "").strip().split("\n\n")[0].split())
