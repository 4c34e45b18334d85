"""Which case belongs to which patient, by `patients.csv` or `cases.csv` (columns `case`, `patient`)."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

from steadysam.errors import InputError

logger = logging.getLogger(__name__)


def read_patients(folder: Path, names: list[str]) -> dict[str, str]:
    """Case -> patient; the case's own name where no table says more.

    Columns may be separated by commas, semicolons or tabs; case and spaces of their names do not matter.

    Raises:
        InputError: `DATA_PATIENTS` (a table that misses a case, gives it two patients, or cannot be read; a
            `cases.csv` that speaks of patients in columns of other names).
    """
    for file in (folder / "patients.csv", folder / "cases.csv"):
        table = _patient_table(file) if file.is_file() else None
        if table is None:
            continue
        missing = [name for name in names if name not in table]
        if missing:
            raise InputError(
                "DATA_PATIENTS",
                f"{len(missing)} cases have no patient in the table",
                file=file,
                seen=shown(missing),
                fix="add a row for each, or remove the table",
            )
        return {name: table[name] for name in names}
    return {name: name for name in names}


def _patient_table(file: Path) -> dict[str, str] | None:
    """None for a `cases.csv` without a column of patients, which says nothing about them."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            head = handle.readline()
            handle.seek(0)
            separator = max(",;\t", key=head.count)
            first, *rows = list(csv.reader(handle, delimiter=separator)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("DATA_PATIENTS", f"the table cannot be read: {error}", file=file) from error
    names = [name.strip().lower() for name in first]
    if not rows or not {"case", "patient"} <= set(names):
        if file.name == "cases.csv" and not any("patient" in name for name in names):
            logger.info("%s has no column of patients: every case counts as a patient of its own", file.name)
            return None
        seen = ",".join(names) if rows else "no row"
        raise InputError(
            "DATA_PATIENTS",
            "columns are missing" if rows else "the table is empty",
            file=file,
            seen=seen,
            expected="case,patient",
            fix="rename the columns, or remove the table",
        )
    table: dict[str, str] = {}
    for values in rows:
        if not any(values):
            continue
        row = dict(zip(names, values, strict=False))
        case, patient = row.get("case", "").strip(), row.get("patient", "").strip()
        if not case or not patient or table.get(case, patient) != patient:
            raise InputError(
                "DATA_PATIENTS", "a case needs exactly one patient", file=file, seen=f"{case!r}: {patient!r}"
            )
        table[case] = patient
    return table


def shown(names: list[str]) -> str:
    """At most twenty names, and how many more."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
