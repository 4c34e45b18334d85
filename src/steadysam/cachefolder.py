"""The one place where STEADYSAM_HOME is resolved."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`STEADYSAM_HOME`, or `~/.cache/steadysam`."""
    return Path(os.environ.get("STEADYSAM_HOME") or Path.home() / ".cache" / "steadysam").expanduser()


def cache_folder(setting: str) -> Path | None:
    """`auto` -> `cache/` in the home; `off` -> None (memory only); anything else is a folder."""
    if setting == "off":
        return None
    return home() / "cache" if setting == "auto" else Path(setting)
