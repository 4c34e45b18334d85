"""The main table of a prompt set: methods by targets, then every target with all numbers; oracles in their own block.

What all rows share is said once, in the caption; what differs has a column. Nothing is filled in: a row that a target
lacks is a dash, a seed that is missing is a smaller count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steadysam.report.benchmark.lines import (
    ALL_EMPTY,
    FACTS,
    MARK,
    MEAN,
    NUMBERS,
    Line,
    empty_row,
    line_row,
    lines_of,
    mean_row,
    targets_of,
)
from steadysam.report.benchmark.pooling import NO_PROMPTS, ORACLE, Book
from steadysam.report.html import Table
from steadysam.report.latex import PREAMBLE, to_latex
from steadysam.report.table import INTERVALS, shown, to_markdown, with_interval

OVERVIEW = {
    "dsc": "DSC over all slices (both empty = 1)",
    "dsc_positive": "DSC over slices that hold the target",
    "volume_dice": "Dice of whole volumes",
}
PAPER = {"dsc": "DSC", "iou": "IoU", "hd95_px": "HD95", "assd_px": "ASSD"}
ORACLE_HEADING = f"oracle{MARK}: prompts that say where the truth is, an upper bound"
_OF_PROMPTS = ("noise_model", "empty_slice_rule")
_ALWAYS = ("points", "prompt_seeds", "training_seeds")


@dataclass(frozen=True)
class SetTables:
    """Everything about one prompt set.

    Args:
        rows: one dict per line and target, the all-empty predictor first, and means over the targets; all columns.
        overview: metric -> methods by targets, with intervals.
        details: target -> all numbers.
        violations: rules of 6.5 that rows break, in words; must be empty.
    """

    prompts: str
    lines: tuple[Line, ...]
    targets: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    overview: Mapping[str, Table]
    details: Mapping[str, Table]
    violations: tuple[str, ...]


def set_tables(book: Book, prompts: str) -> SetTables:
    """The tables of a prompt set."""
    lines = lines_of(book, prompts)
    targets = targets_of(book, lines)
    rows: list[dict[str, Any]] = []
    for target in targets:
        rows.append(empty_row(book, lines, target))
        rows += [line_row(book, line, target) for line in lines if target in line.pools]
    names = [(ALL_EMPTY, NO_PROMPTS), *((line.name, line.lane) for line in lines)]
    of_line = {name: [row for row in rows if (row["row"], row["lane"]) == name] for name in names}
    means = {name: mean_row(found, targets) for name, found in of_line.items()} if len(targets) > 1 else {}
    return SetTables(
        prompts=prompts,
        lines=tuple(lines),
        targets=tuple(targets),
        rows=(*rows, *(mean for mean in means.values() if mean)),
        overview={metric: _overview(metric, of_line, means, targets) for metric in OVERVIEW},
        details={target: _details([row for row in rows if row["target"] == target], prompts) for target in targets},
        violations=tuple(
            f"{row['target']}, {row['row']}: {row['violations']}" for row in rows if row.get("violations")
        ),
    )


def blocks_of(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Index of the first row of each lane -> its heading."""
    found: dict[int, str] = {}
    for index, row in enumerate(rows):
        if index == 0 or row["lane"] != rows[index - 1]["lane"]:
            found[index] = ORACLE_HEADING if row["lane"] == ORACLE else row["lane"]
    return found


def markdown_of(table: Table) -> str:
    """A table of the page as Markdown, with its caption below."""
    columns = list(table.columns)
    text = to_markdown(table.rows, columns, headings=table.columns, digits=table.digits, blocks=table.blocks)
    return f"{text}\n{table.caption}\n" if table.caption else text


def latex_of(table: Table, label: str, title: str = "") -> str:
    """A table of the page for LaTeX."""
    caption = f"{title}. {table.caption}" if title and table.caption else title or table.caption
    return to_latex(
        table.rows,
        list(table.columns),
        headings=table.columns,
        caption=caption,
        label=label,
        digits=table.digits,
        blocks=table.blocks,
    )


def set_markdown(tables: SetTables) -> str:
    """`tables/SET.md`."""
    parts = [f"# Prompt set: {tables.prompts}\n"]
    if tables.violations:
        parts.append(
            "Rules that these numbers break:\n\n" + "\n".join(f"- {line}" for line in tables.violations) + "\n"
        )
    for metric, table in tables.overview.items():
        parts += [f"## {OVERVIEW[metric]}\n", markdown_of(table)]
    for target, table in tables.details.items():
        parts += [f"## {target}\n", markdown_of(table)]
    return "\n".join(parts)


def set_latex(tables: SetTables, label: str) -> str:
    """`tables/SET.tex`: methods by targets as in a paper, volume Dice, then every target with all numbers."""
    parts = [PREAMBLE, _paper_table(tables, f"tab:{label}")]
    parts.append(latex_of(tables.overview["volume_dice"], f"tab:{label}-volume", OVERVIEW["volume_dice"]))
    for number, (target, table) in enumerate(tables.details.items(), 1):
        parts.append(latex_of(table, f"tab:{label}-{number}", f"{target}, prompt set {tables.prompts}"))
    return "\n".join(parts)


def _overview(
    metric: str,
    of_line: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    means: Mapping[tuple[str, str], Mapping[str, Any] | None],
    targets: Sequence[str],
) -> Table:
    rows = []
    for (name, lane), found in of_line.items():
        row: dict[str, Any] = {"row": name, "lane": lane}
        row |= {f"at {row_['target']}": with_interval(row_.get(metric), row_.get(f"{metric}_95")) for row_ in found}
        row["n_seeds"] = _seeds([row_["n_seeds"] for row_ in found])
        row["mean"] = (means.get((name, lane)) or {}).get(metric)
        rows.append(row)
    columns = {"row": "", **{f"at {target}": target for target in targets}}
    columns |= {"mean": MEAN} if len(targets) > 1 else {}
    caption = f"In brackets {INTERVALS}."
    return Table({**columns, "n_seeds": "seeds"}, rows, caption, blocks=blocks_of(rows), emphasised=0)


def _details(rows: Sequence[Mapping[str, Any]], prompts: str) -> Table:
    judged = [row for row in rows if row["row"] != ALL_EMPTY]
    varying, shared = _facts(judged)
    columns = {"row": "", **{key: FACTS[key] for key in varying}}
    columns |= {key: text for key, text in NUMBERS.items() if any(row.get(key) is not None for row in judged)}
    table_rows = [{**row, **_readable(row)} for row in rows]
    return Table(columns, table_rows, _caption(judged, shared, prompts), blocks=blocks_of(rows), emphasised=0)


def _caption(judged: Sequence[Mapping[str, Any]], shared: Sequence[str], prompts: str) -> str:
    """What rows of one target or of several share; without the all-empty predictor."""
    shares = {row["target"]: f"{shown(100 * row['empty_share'], 1)} %" for row in judged}
    of_targets = [f"{share} ({target})" if len(shares) > 1 else share for target, share in shares.items()]
    bare = all(row.get("prompt_hash") is None for row in judged if row["lane"] != ORACLE)
    whose = "No prompts. Of all rows" if bare else f"Prompt set {prompts}. Of all rows that it concerns"
    return (
        f"{whose}: {'; '.join(shared)}. {', '.join(of_targets)} of the slices do not hold "
        f"the target. {INTERVALS}. HD95 and ASSD in pixels, over the n slices on which both masks hold "
        "something. Training seconds and trained parameters: of the run's own stages, without those it starts from."
    )


def _facts(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """The facts in which rivals differ, which get columns, and what the others share, in words."""
    varying, shared = [], []
    rivals = [row for row in rows if row["lane"] != ORACLE]
    for key, heading in FACTS.items():
        found, oracle = (
            list(dict.fromkeys(row[key] for row in some if row.get(key) is not None))
            for some in (rivals or rows, [row for row in rows if row["lane"] == ORACLE])
        )
        if rivals and not found and key in _OF_PROMPTS:  # nobody is prompted but the oracle
            continue
        if len(found) > 1 or (key in _ALWAYS and (found or oracle)) or (not found and oracle):
            varying.append(key)
        elif found:
            other = [value for value in oracle if value not in found]
            shared.append(f"{heading}: {found[0]}" + (f" (oracle: {', '.join(map(str, other))})" if other else ""))
    return varying, shared


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Costs in few digits."""
    seconds, trained = row.get("training_seconds"), row.get("trained_parameters")
    return {
        "training_seconds": round(seconds) if seconds is not None and seconds >= 10 else seconds,
        "trained_parameters": None if trained is None else f"{trained / 1e6:.2f} M",
    }


def _paper_table(tables: SetTables, label: str) -> str:
    by_line: dict[tuple[str, str], dict[str, Any]] = {}
    for row in tables.rows:
        line = by_line.setdefault((row["row"], row["lane"]), {"row": row["row"], "lane": row["lane"]})
        line |= {f"{row['target']} {metric}": row.get(metric) for metric in PAPER}
    rows = list(by_line.values())
    names = [line.name for line in tables.lines]
    rows.sort(key=lambda row: names.index(row["row"]) if row["row"] in names else -1)
    columns = ["row", *(f"{target} {metric}" for target in tables.targets for metric in PAPER)]
    headings = {
        "row": "",
        **{f"{target} {metric}": text for target in tables.targets for metric, text in PAPER.items()},
    }
    if len(tables.targets) > 1:
        columns.append(f"{MEAN} dsc")
        headings[f"{MEAN} dsc"] = "mean DSC"
    judged = [row for row in tables.rows if row["target"] in tables.targets and row["row"] != ALL_EMPTY]  # nor means
    return to_latex(
        rows,
        columns,
        headings=headings,
        caption=f"Methods and targets. {_caption(judged, _facts(judged)[1], tables.prompts)}",
        label=label,
        blocks=blocks_of(rows),
        spans=[("", 1), *((target, len(PAPER)) for target in tables.targets)],
    )


def _seeds(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))
