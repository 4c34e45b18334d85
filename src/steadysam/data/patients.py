"""Which case belongs to which patient, by `patients.csv` or `cases.csv` (columns `case`, `patient`)."""

from __future__ import annotations

import csv
from pathlib import Path

from steadysam.errors import InputError


def read_patients(folder: Path, names: list[str]) -> dict[str, str]:
    """Case -> patient; the case's own name where no table says more.

    Raises:
        InputError: `DATA_PATIENTS` (a table that misses a case, gives it two patients, or cannot be read).
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
    """None for a `cases.csv` without a column `patient`, which says nothing about patients."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError("DATA_PATIENTS", f"the table cannot be read: {error}", file=file) from error
    if not rows or not {"case", "patient"} <= set(rows[0]):
        if file.name == "cases.csv":
            return None
        raise InputError("DATA_PATIENTS", "columns are missing", file=file, expected="case,patient")
    table: dict[str, str] = {}
    for row in rows:
        case, patient = (row["case"] or "").strip(), (row["patient"] or "").strip()
        if not case or not patient or table.get(case, patient) != patient:
            raise InputError(
                "DATA_PATIENTS", "a case needs exactly one patient", file=file, seen=f"{case!r}: {patient!r}"
            )
        table[case] = patient
    return table


def shown(names: list[str]) -> str:
    """At most twenty names, and how many more."""
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
