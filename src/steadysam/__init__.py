"""SteadySAM: steady segmentation from shaky prompts.

The public names are loaded when they are first used: `import steadysam` and the prompt tools start fast and
without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from steadysam.audit import write_audit
    from steadysam.config import RunConfig, make_config, read_config
    from steadysam.data.volumes import read_volume, write_mask
    from steadysam.embeddings import EmbeddingCache
    from steadysam.errors import SteadyError
    from steadysam.evaluate import evaluate_folder
    from steadysam.jobs import find_jobs
    from steadysam.prediction import predict
    from steadysam.prompts.files import read_prompts, write_prompts
    from steadysam.runs import Run, load_run
    from steadysam.segmenting import Result, segment
    from steadysam.training import train
    from steadysam.types import Box, Grid, Mask, Point, Prompts, Volume

# name -> module; no name here is also the name of a module, which an import would put in its place
_HOME = {
    "Box": "steadysam.types",
    "EmbeddingCache": "steadysam.embeddings",
    "Grid": "steadysam.types",
    "Mask": "steadysam.types",
    "Point": "steadysam.types",
    "Prompts": "steadysam.types",
    "Result": "steadysam.segmenting",
    "Run": "steadysam.runs",
    "RunConfig": "steadysam.config",
    "SteadyError": "steadysam.errors",
    "Volume": "steadysam.types",
    "evaluate_folder": "steadysam.evaluate",
    "find_jobs": "steadysam.jobs",
    "load_run": "steadysam.runs",
    "make_config": "steadysam.config",
    "predict": "steadysam.prediction",
    "read_config": "steadysam.config",
    "read_prompts": "steadysam.prompts.files",
    "read_volume": "steadysam.data.volumes",
    "segment": "steadysam.segmenting",
    "train": "steadysam.training",
    "write_audit": "steadysam.audit",
    "write_mask": "steadysam.data.volumes",
    "write_prompts": "steadysam.prompts.files",
}

__all__ = [
    "Box",
    "EmbeddingCache",
    "Grid",
    "Mask",
    "Point",
    "Prompts",
    "Result",
    "Run",
    "RunConfig",
    "SteadyError",
    "Volume",
    "__version__",
    "evaluate_folder",
    "find_jobs",
    "load_run",
    "make_config",
    "predict",
    "read_config",
    "read_prompts",
    "read_volume",
    "segment",
    "train",
    "write_audit",
    "write_mask",
    "write_prompts",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module at its first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
