"""KiTS23 as an nnU-Net v2 raw folder: 489 CT of kidneys with tumours and cysts.

Source page: the KiTS23 challenge site, and the repository neheller/kits23 whose download script fetches the images.
Layout expected in SOURCE (or SOURCE/dataset):

    case_00000/imaging.nii.gz
    case_00000/segmentation.nii.gz

Files are copied as they are, or linked. The paper's target is the union: `--label all`.

    python benchmarks/prepare/kits23.py kits23/dataset -o Dataset921_KiTS23
    steadysam train Dataset921_KiTS23 --label all --fold 0 -o runs/kits
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raw_folder import About, Found, add_nifti_options, parser, run, write_raw

ABOUT = About(
    name="KiTS23",
    channels=("CT",),
    labels={"background": 0, "kidney": 1, "tumor": 2, "cyst": 3},
    licence="CC BY-NC-SA 4.0: not for commercial use, share alike",
    reference="Heller et al., The KiTS21 Challenge, arXiv 2307.01984, 2023; KiTS23 challenge",
    slice_axis="axial",
)


def find(source: Path) -> list[Found]:
    """One case per folder `case_*`; a case is a patient."""
    root = source / "dataset" if (source / "dataset").is_dir() else source
    folders = sorted(path for path in root.glob("case_*") if path.is_dir())
    return [Found(f.name, f.name, f / "imaging.nii.gz", f / "segmentation.nii.gz") for f in folders]


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    made = parser(__doc__ or "", ABOUT)
    add_nifti_options(made)
    args = made.parse_args(words)
    write_raw(args, ABOUT, find(args.source))


if __name__ == "__main__":
    run(main)
