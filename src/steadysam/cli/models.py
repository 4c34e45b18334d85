"""`steadysam models`: which backbones there are, and how their weights come to this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from steadysam.backbones.table import BACKBONES, BackboneSpec
from steadysam.backbones.video.table import VIDEO_MODELS
from steadysam.backbones.weights import download, find, import_weights

app = App(name="models", help="List, download and import backbones.")


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False, markup=False).print(text)


@app.command(name="list")
def list_models(
    *, json_: Annotated[bool, Parameter(name="--json", negative="")] = False, home: Path | None = None
) -> None:
    """Show every backbone and video model: parameters, licence, and whether its weights are on this machine.

    For example:

        steadysam models list
        steadysam models list --json

    Parameters
    ----------
    json_
        Print JSON, with revisions and hashes.
    home
        Folder of the weights; default STEADYSAM_HOME, else ~/.cache/steadysam.
    """
    rows = [_row(spec, home) for spec in (*BACKBONES.values(), *VIDEO_MODELS.values())]
    if json_:
        _say(json.dumps(rows, indent=2))
        return
    table = Table("name", "parameters", "pixels", "licence", "weights", "about", box=None)
    table.columns[0].no_wrap = True
    for row in rows:
        cells = (
            f"{row['parameters']:,}",
            row["native_size"],
            row["licence"] or "-",
            _state(row),
            row["about"],
        )
        table.add_row(str(row["name"]), *map(str, cells))
    Console().print(table)


@app.command(name="download")
def download_model(name: str, *, home: Path | None = None) -> None:
    """Download the weights NAME at the pinned revision; shows their licence first, checks their hash after.

    For example:

        steadysam models download sam-vit-base

    Parameters
    ----------
    name
        A row of `steadysam models list`.
    home
        Folder of the weights; default STEADYSAM_HOME, else ~/.cache/steadysam.
    """
    record = download(name, home=home, say=_say)
    _say(f"{record.file}  sha256 {record.sha256}")


@app.command(name="import")
def import_model(name: str, path: Path, *, home: Path | None = None) -> None:
    """Take the weights NAME from a file or folder brought to this machine; no network is used.

    For example:

        steadysam models import sam-vit-base model.safetensors

    Parameters
    ----------
    name
        A row of `steadysam models list`.
    path
        A safetensors file, or a folder with model.safetensors; in the layout of transformers or
        segment-anything.
    home
        Folder of the weights; default STEADYSAM_HOME, else ~/.cache/steadysam.
    """
    record = import_weights(name, path, home=home)
    _say(f"{record.file}  sha256 {record.sha256}")


def _row(spec: BackboneSpec, home: Path | None) -> dict[str, object]:
    record = find(spec, home) if spec.published else None
    packaged = spec.packaged_file if spec.packaged else None
    return {
        "name": spec.name,
        "parameters": spec.parameters,
        "native_size": spec.native_size,
        "patch": spec.architecture.patch,
        "licence": spec.licence,
        "from_scratch": spec.from_scratch,
        "hub_id": spec.hub_id,
        "revision": spec.revision,
        "source": spec.source,
        "sha256": spec.sha256,
        "norm": spec.norm,
        "file": str(record.file) if record else str(packaged) if packaged else None,
        "file_sha256": record.sha256 if record else spec.sha256 if packaged else None,
        "packaged": spec.packaged,
        "about": spec.about,
    }


def _state(row: dict[str, object]) -> str:
    if row["from_scratch"]:
        return "none needed"
    if row["packaged"]:
        return "in the package"
    return "present" if row["file"] else "not here"
