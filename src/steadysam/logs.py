"""What a person sees of training: CSV and TensorBoard files, and a progress bar with an estimate of the end.

`metrics.csv` holds results only and is the same bytes for the same run; wall times go to `timing.csv`.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from steadysam.files import write_text

if TYPE_CHECKING:  # it would load torch, and prediction tools use the bars too
    from steadysam.methods.contract import StageSettings

logger = logging.getLogger(__name__)

TELL_SECONDS = 60


class TrainingLog:
    """Rows per epoch in `STAGE-metrics.csv` and `STAGE-timing.csv`, scalars in `tensorboard/STAGE`.

    Args:
        epochs_done: rows after this epoch are dropped: a resumed run writes them again.
    """

    def __init__(self, folder: Path, stage: str, epochs_done: int, enabled: bool = True) -> None:
        self.folder, self.stage, self.enabled = folder, stage, enabled
        self.rows = {kind: _read_rows(folder / f"{stage}-{kind}.csv", epochs_done) for kind in ("metrics", "timing")}
        self.writer: Any = None
        self.epochs_done = epochs_done

    def __enter__(self) -> TrainingLog:
        if self.enabled:
            from torch.utils.tensorboard.writer import SummaryWriter  # slow to import

            folder = self.folder / "tensorboard" / self.stage
            self.writer = SummaryWriter(str(folder), purge_step=self.epochs_done + 1)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def epoch(
        self, epoch: int, rate: float, trained: Mapping[str, float], watched: Mapping[str, float], seconds: float
    ) -> None:
        """Write one epoch's row; `trained` and `watched` are mean terms on training and validation slices."""
        if not self.enabled:
            return
        row = {"epoch": epoch, "learning_rate": rate}
        row |= {f"train_{name}": value for name, value in trained.items()}
        row |= {f"val_{name}": value for name, value in watched.items()}
        self._append("metrics", {name: repr(value) for name, value in row.items()})
        self._append("timing", {"epoch": str(epoch), "seconds": f"{seconds:.3f}"})
        for name, value in row.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.add_scalar("seconds", seconds, epoch)

    def _append(self, kind: str, row: dict[str, str]) -> None:
        self.rows[kind].append(row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(self.rows[kind][0]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows[kind])
        write_text(self.folder / f"{self.stage}-{kind}.csv", text.getvalue())


def _read_rows(path: Path, epochs_done: int) -> list[dict[str, str]]:
    if not epochs_done or not path.is_file():
        return []
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
    return [row for row in rows if int(row["epoch"]) <= epochs_done]


def progress_bar(enabled: bool = True) -> Progress:
    """A bar with count, elapsed time and estimate, on stderr; silent where stderr is no terminal, or with --quiet."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=sys.stderr),
        disable=not (enabled and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)),
        transient=True,
    )


class EpochBar:
    """Two bars: epochs of the stage, and steps of the epoch.

    Where there is no terminal an epoch is a line of the log: one a minute, with --verbose each.
    """

    def __init__(self, stage: str, epochs: int, done: int, enabled: bool) -> None:
        self.progress = progress_bar(enabled)
        self.stage, self.total, self.enabled, self.told = stage, epochs, enabled, time.monotonic()
        self.epochs = self.progress.add_task(f"{stage}: epochs", total=epochs, completed=done, note="")
        self.steps = self.progress.add_task("steps", total=None, note="")

    def __enter__(self) -> EpochBar:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def step(self, step: int, samples: int, settings: StageSettings, world: int) -> None:
        """One step of the epoch is done."""
        total = math.ceil(min(samples, settings.slices_per_epoch or samples) / (settings.batch_size * world))
        self.progress.update(self.steps, completed=step + 1, total=total)

    def epoch(self, epoch: int, value: float, best: float, name: str = "loss") -> None:
        """One epoch is done; `value` is the mean, of the loss or its term `name`, that selects the best epoch."""
        said = name if name == "loss" else f"{name} loss"
        self.note(epoch, f"val {said} {value:.4f}, best {best:.4f}")

    def note(self, epoch: int, text: str) -> None:
        """One epoch is done, and this is to be said of it."""
        self.progress.update(self.epochs, completed=epoch, note=text)
        self.progress.reset(self.steps)
        if self.enabled and self.progress.disable:
            due = time.monotonic() - self.told >= TELL_SECONDS
            logger.log(
                logging.INFO if due else logging.DEBUG, "%s: epoch %d of %d, %s", self.stage, epoch, self.total, text
            )
            self.told = time.monotonic() if due else self.told
