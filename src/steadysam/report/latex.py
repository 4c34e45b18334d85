"""Tables for LaTeX: rules of the package booktabs, everything escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steadysam.report.table import ABSENT, Row, is_numeric, shown

PREAMBLE = "% needs: \\usepackage{booktabs}, \\usepackage{graphicx}\n"

_CHARACTERS = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    ABSENT: "--",
    "†": r"\dag{}",
    "→": r"$\rightarrow$",
    "τ": r"$\tau$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    # behind the end of a line they would be read as its arguments
    **{character: "{" + character + "}" for character in "[]*"},
    "\n": " ",
}


def escape(text: str) -> str:
    """`text` with every character that means something to TeX made to stand for itself."""
    return "".join(_CHARACTERS.get(character, character) for character in text.replace("->", "→"))


def to_latex(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    headings: Mapping[str, str] | None = None,
    caption: str = "",
    label: str = "",
    digits: int = 3,
    blocks: Mapping[int, str] | None = None,
    spans: Sequence[tuple[str, int]] = (),
) -> str:
    """A `table` environment as wide as the page at most; numbers right-aligned and rounded to `digits` places.

    Args:
        headings: column -> heading where it is not the column's own name.
        blocks: index of a row -> heading of the block that begins with it.
        spans: (text, number of columns) of a line above the headings, from the left; "" is empty.
    """
    layout = "".join("r" if is_numeric(rows, key) else "l" for key in columns)
    lines = ["\\begin{table}[t]", "\\centering", "\\footnotesize"]
    # LaTeX's classes leave no room between a caption above and the table
    lines += ["\\setlength{\\belowcaptionskip}{4pt}", f"\\caption{{{escape(caption)}}}"] if caption else []
    lines += [f"\\label{{{label}}}"] if label else []
    lines += ["\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%"]
    lines += [f"\\begin{{tabular}}{{{layout}}}", "\\toprule", *_spanning(spans)]
    lines += [_line((headings or {}).get(key, key) for key in columns), "\\midrule"]
    for index, row in enumerate(rows):
        if blocks and index in blocks:
            lines += ["\\midrule"] if index else []
            lines.append(f"\\multicolumn{{{len(columns)}}}{{l}}{{\\textit{{{escape(blocks[index])}}}}} \\\\")
        lines.append(_line(shown(row.get(key), digits) for key in columns))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}}", "\\end{table}"]) + "\n"


def _spanning(spans: Sequence[tuple[str, int]]) -> list[str]:
    cells, rules, column = [], [], 1
    for text, width in spans:
        cells.append(f"\\multicolumn{{{width}}}{{c}}{{{escape(text)}}}")
        if text:
            rules.append(f"\\cmidrule(lr){{{column}-{column + width - 1}}}")
        column += width
    return [" & ".join(cells) + " \\\\", " ".join(rules)] if spans else []


def _line(cells: Any) -> str:
    return " & ".join(escape(cell) for cell in cells) + " \\\\"
