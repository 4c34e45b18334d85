"""The command line. Commands are named here as text and imported when they are called, so that `steadysam prompts`
and `steadysam info` start without torch."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

from cyclopts import App, Parameter

from steadysam import __version__
from steadysam.errors import SteadyError

HELP = """Steady segmentation from shaky prompts.

Train on labelled volumes and noisy prompts, segment new ones, and learn what became of every click:

    steadysam train DATASET --label LV -o runs/lv
    steadysam predict -i IMAGE.nii.gz --prompts CLICKS.mrk.json -m runs/lv -o out
    steadysam evaluate out LABELS -o out/report

Exit codes: 0 ok, 2 usage, 3 configuration, 4 input data, 5 model, 6 some cases failed, 7 resources,
8 file system, 10 output check, 11 network."""

app = App(name="steadysam", help=HELP, version=__version__)
app.command("steadysam.cli.train:train", name="train", help="Train a method on a data set; writes a run folder.")
app.command("steadysam.cli.predict:predict", name="predict", help="Segment files with a run; writes masks and audits.")
app.command("steadysam.cli.evaluate:evaluate", name="evaluate", help="Score masks against labels; writes a report.")
app.command("steadysam.cli.prompts:app", name="prompts", help="Check, convert, simulate and corrupt prompt files.")
app.command("steadysam.cli.models:app", name="models", help="List, download and import backbones.")
app.command("steadysam.cli.demo:demo", name="demo", help="Draw data, train, segment and report, in a few minutes.")
app.command("steadysam.cli.info:info", name="info", help="What is installed: versions, methods, backbones, metrics …")


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
    try:
        return app(tokens)
    except SteadyError as error:
        if debug:
            raise
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was written is whole", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def main() -> None:
    """Entry point of the `steadysam` command."""
    sys.exit(app.meta())
