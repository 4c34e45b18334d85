"""The command line. Importing it loads no torch; what is slow to import is named as text and loaded when called."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated

from cyclopts import App, Parameter

from steadysam import __version__
from steadysam.cli.bench import bench as bench_command
from steadysam.cli.click import segment_click as segment_click_command
from steadysam.cli.combine import combine as combine_command
from steadysam.cli.detect import detect as detect_command
from steadysam.cli.draw import draw as draw_command
from steadysam.cli.evaluate import evaluate as evaluate_command
from steadysam.cli.predict import predict as predict_command
from steadysam.cli.pretrain import pretrain as pretrain_command
from steadysam.cli.report import report as report_command
from steadysam.cli.train import train as train_command
from steadysam.errors import SteadyError

HELP = """Steady segmentation from shaky prompts.

Train on labelled volumes and noisy prompts, segment new ones, and learn what became of every click:

    steadysam train DATASET --label LV -o runs/lv
    steadysam predict -i IMAGE.nii.gz --prompts CLICKS.mrk.json -m runs/lv -o out
    steadysam evaluate out LABELS -o out/report

Or click, without any training:

    steadysam segment-click IMAGE.nii.gz --point 96,110,7 -o out

Exit codes: 0 ok, 2 usage, 3 configuration, 4 input data, 5 model, 6 some cases failed, 7 resources,
8 file system, 9 output folder in use, 10 output check, 11 network, 12 a program of others, 130 interrupted,
143 terminated."""

# the help of commands named as text stands here: it would hide their docstrings
DEMO = """Draw data, train, segment and report, in a few minutes.

For example:

    steadysam demo -o demo"""
INFO = """List versions, methods, backbones, simulators, corruptions and metrics.

For example:

    steadysam info
    steadysam info --json"""

# interruptions are told of in `launch`
app = App(name="steadysam", help=HELP, version=__version__, suppress_keyboard_interrupt=False)
app.command(train_command, name="train")
app.command(predict_command, name="predict")
app.command(evaluate_command, name="evaluate")
app.command(combine_command, name="combine")
app.command(detect_command, name="detect")
app.command(segment_click_command, name="segment-click")
app.command(pretrain_command, name="pretrain")
app.command(draw_command, name="draw")
app.command(bench_command, name="bench")
app.command(report_command, name="report")
app.command("steadysam.cli.prompts:app", name="prompts", help="Check, convert, simulate and corrupt prompt files.")
app.command("steadysam.cli.models:app", name="models", help="List, download and import backbones.")
app.command("steadysam.cli.nnunet:app", name="nnunet", help="Train and use nnU-Net v2, an outside competitor.")
app.command("steadysam.cli.demo:demo", name="demo", help=DEMO)
app.command("steadysam.cli.info:info", name="info", help=INFO)


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="")] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")] = False,
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> int | None:
    """Options of every command.

    Parameters
    ----------
    verbose
        Say more.
    quiet
        Say errors only.
    debug
        Show a traceback with an error.
    """
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("steadysam").setLevel(level)
    if not verbose and tokens[:1] != ("predict",):  # a line per file is news where a few files are segmented
        logging.getLogger("steadysam.data").setLevel(logging.WARNING)
    try:
        return app(tokens)
    except SteadyError as error:
        if debug:
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interruption:
        flag = {"train": "with --continue ", "pretrain": "with --continue ", "bench": ""}.get("".join(tokens[:1]))
        hint = "" if flag is None else f"; the same command {flag}goes on from there"
        print(f"interrupted; what was written is whole{hint}", file=sys.stderr)
        return 143 if isinstance(interruption, _Terminated) else 130
    except BrokenPipeError:
        return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send: temporary files and locks go as after Ctrl-C."""


def _terminate(*_: object) -> None:
    raise _Terminated


def main() -> None:
    """Entry point of the `steadysam` command."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(app.meta())
