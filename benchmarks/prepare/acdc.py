"""ACDC as an nnU-Net v2 raw folder: short-axis cine MRI of 150 hearts, at end diastole and end systole.

Source page: Automated Cardiac Diagnosis Challenge, CREATIS, University of Lyon; registration is asked for.
Layout expected in SOURCE (or SOURCE/database), with `testing` where its labels were downloaded:

    training/patient001/Info.cfg                     which frames are ED and ES
    training/patient001/patient001_frame01.nii.gz
    training/patient001/patient001_frame01_gt.nii.gz
    testing/patient101/...

Cases are named patient001_ED and patient001_ES; both frames of a patient stay on one side of the split. The official
test patients are the test set, unless --ignore-test.

    python benchmarks/prepare/acdc.py ACDC/database -o Dataset922_ACDC
    steadysam train Dataset922_ACDC --label LV --fold 0 -o runs/lv
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raw_folder import About, Found, add_nifti_options, parser, run, write_raw

from steadysam.errors import InputError

ABOUT = About(
    name="ACDC",
    channels=("cineMRI",),
    labels={"background": 0, "RV": 1, "MYO": 2, "LV": 3},
    licence="terms of the challenge, to be accepted there; copies elsewhere say CC BY-NC-SA 4.0: not commercial",
    reference="Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-structures Segmentation and "
    "Diagnosis: Is the Problem Solved?, IEEE TMI 37(11), 2018",
    slice_axis=2,
)
FRAMES = ("ED", "ES")


def find(source: Path, frames: Sequence[str] = FRAMES, official_test: bool = True) -> list[Found]:
    """The named frames of every patient.

    Raises:
        InputError: `SOURCE_MISSING` (no Info.cfg), `SOURCE_INFO` (it names no frame).
    """
    root = source / "database" if (source / "database").is_dir() else source
    groups = [(root / "training", False), (root / "testing", official_test)]
    if not any(folder.is_dir() for folder, _ in groups):
        groups = [(root, False)]
    found = []
    for group, test in groups:
        for folder in sorted(path for path in group.glob("patient*") if path.is_dir()):
            info = read_info(folder / "Info.cfg")
            for frame in frames:
                found.append(_case(folder, info, frame, test))
    return found


def read_info(path: Path) -> dict[str, str]:
    """`Info.cfg`, whose lines read `ED: 1`.

    Raises:
        InputError: `SOURCE_MISSING`.
    """
    if not path.is_file():
        raise InputError("SOURCE_MISSING", "no Info.cfg beside the frames", file=path, fix="download the patient again")
    pairs = [line.partition(":") for line in path.read_text("utf-8-sig").splitlines() if ":" in line]
    return {key.strip(): value.strip() for key, _, value in pairs}


def _case(folder: Path, info: dict[str, str], frame: str, test: bool) -> Found:
    number = info.get(frame, "")
    if not number.isdigit():
        raise InputError(
            "SOURCE_INFO", f"Info.cfg does not say which frame is {frame}", file=folder / "Info.cfg", seen=number
        )
    stem = f"{folder.name}_frame{int(number):02d}"
    ending = ".nii" if (folder / f"{stem}.nii").is_file() else ".nii.gz"  # some copies are unpacked
    notes = {"frame": f"frame{int(number):02d}", "group": info.get("Group", "")}
    image, label = folder / f"{stem}{ending}", folder / f"{stem}_gt{ending}"
    return Found(f"{folder.name}_{frame}", folder.name, image, label, test, notes)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    made = parser(__doc__ or "", ABOUT)
    add_nifti_options(made)
    made.add_argument("--frames", nargs="+", choices=FRAMES, default=FRAMES, help="which frames become cases")
    made.add_argument("--ignore-test", action="store_true", help="split all patients, whatever the challenge did")
    args = made.parse_args(words)
    write_raw(args, ABOUT, find(args.source, args.frames, not args.ignore_test))


if __name__ == "__main__":
    run(main)
