"""The model card of the weights in the package, from the run that made them and the measured tables.

Command:  python benchmarks/model_card.py --run runs/tiny
Writes MODEL_CARD.md beside the weights and says which sha256 and parameter count belong into the table of backbones.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from steadysam.backbones import BACKBONES
from steadysam.backbones.checkpoints import read_safetensors
from steadysam.files import read_json, sha256_file, write_text
from steadysam.report.table import shown, to_markdown

HERE = Path(__file__).parent
ROW = "steadysam-tiny"


def read_rows(path: Path) -> list[dict[str, str]]:
    """A CSV file as rows; none if it is not there."""
    return list(csv.DictReader(path.read_text("utf-8").splitlines())) if path.is_file() else []


def facts(run: Path, weights: Path) -> dict[str, str]:
    """What the text needs: sizes, hashes, cost."""
    log = read_rows(run / "logs" / "pretrain-metrics.csv")
    seconds = sum(float(row["seconds"]) for row in read_rows(run / "logs" / "pretrain-timing.csv"))
    record = read_json(run / "run.json")
    speed, held_out = record.get("speed", {}), record["held_out"]
    state = read_safetensors(weights)
    return {
        "parameters": f"{BACKBONES[ROW].parameters:,}",
        "megabytes": f"{weights.stat().st_size / 1e6:.1f}",
        "precision": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in state.values()})),
        "sha256": sha256_file(weights),
        "images": f"{int(float(log[-1]['train_images'])):,}",
        "minutes": f"{seconds / 60:.0f}",
        "device": str(speed.get("device", "not recorded")),
        "rate": shown(float(log[-1]["train_images"]) / seconds, 1),
        "fraction": f"{100 * speed['fraction_of_peak']:.0f} %" if speed.get("fraction_of_peak") else "not recorded",
        "held_out_one": shown(held_out["one"], 3),
        "held_out_three": shown(held_out["three"], 3),
        "held_out_box": shown(held_out["box"], 3),
        "blind": shown(held_out["one_other_image"], 3),
    }


HEADINGS = {"one": "one click", "three": "three clicks", "one_95": "95 %", "three_95": "95 %", "box_95": "95 %"}
HEADINGS |= {"n_samples": "slices x seeds"}


def score_tables(results: Path) -> str:
    """The bars, the means and the model's rows by target."""
    parts = []
    numbers = ("one", "three", "box")
    for name, first in (("bars", None), ("means", "method"), ("targets", "target")):
        rows: list[dict[str, object]] = []
        for row in read_rows(results / "tables" / f"{name}.csv"):
            if first == "target" and row["method"] != ROW:
                continue
            rows.append({key: _number(value) for key, value in row.items()})
        if not rows:
            continue
        leading = ("prompt_source", "noise_model", "empty_slice_rule", "split", "training_seed", "prompt_set")
        skip = {*leading, "empty_consensus_policy", *(() if first == "method" else ("method",))}
        columns = [key for key in rows[0] if key not in skip]
        columns.sort(key=lambda key: (key != first, key not in numbers and "_95" not in key))
        parts.append(to_markdown(rows, columns, headings=HEADINGS))
    return "\n\n".join(parts) if parts else "Not measured."


def _number(text: str) -> object:
    if text.startswith("(") and text.endswith(")"):  # an interval, as the CSV has it
        return tuple(float(part) for part in text[1:-1].split(","))
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text or None


def main() -> None:
    """Write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder written by `steadysam pretrain`")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "zero_shot")
    flags = parser.parse_args()
    weights = BACKBONES[ROW].packaged_file
    known = facts(flags.run, weights)
    text = (HERE / "pretrain" / "card.md").read_text("utf-8")
    for name, value in known.items():
        text = text.replace("{" + name + "}", value)
    text = text.replace("{config}", (flags.run / "config.toml").read_text("utf-8").strip())
    text = text.replace("{scores}", score_tables(flags.results))
    print(write_text(weights.parent / "MODEL_CARD.md", text))
    print(f"for the table of backbones: sha256 {known['sha256']}")


if __name__ == "__main__":
    main()
