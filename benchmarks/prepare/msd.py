"""A task of the Medical Segmentation Decathlon as an nnU-Net v2 raw folder.

Source page: Medical Segmentation Decathlon (medicaldecathlon).
Layout expected in SOURCE, which `steadysam train` reads as it is where images have one channel:

    Task04_Hippocampus/dataset.json       its list `training` names images and labels
    Task04_Hippocampus/imagesTr/hippocampus_001.nii.gz
    Task04_Hippocampus/labelsTr/hippocampus_001.nii.gz

Images of several channels (brain tumour, prostate) are taken apart into CASE_0000, CASE_0001, ... The official test
images have no labels and are left out. The tasks have no subject numbers: a case counts as a patient.

    python benchmarks/prepare/msd.py Task04_Hippocampus -o Dataset904_Hippocampus
    steadysam train Dataset904_Hippocampus --label Anterior --fold 0 -o runs/anterior
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raw_folder import ENDING, About, Found, add_nifti_options, copy_file, copy_pair, parser, run, write_raw

from steadysam.data.cases import read_dataset
from steadysam.errors import ConfigError, InputError
from steadysam.files import atomic_write, read_json

LICENCE = "CC BY-SA 4.0: attribution, share alike"
REFERENCE = "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 4128, 2022"
GENERAL = About("MSD", (), {}, LICENCE, REFERENCE)


def describe(source: Path, slice_axis: int | None = None) -> About:
    """Name, channels and labels of a task, from its `dataset.json`.

    Raises:
        InputError: `DATA_JSON` (no `modality` or `labels`), and those of `read_dataset`.
    """
    labels = read_dataset(source).labels
    info = read_json(source / "dataset.json")
    modality = info.get("modality")
    if not isinstance(modality, dict) or not modality:
        raise InputError("DATA_JSON", "no modality in dataset.json", file=source / "dataset.json", seen=modality)
    channels = tuple(str(modality[key]) for key in sorted(modality, key=int))
    return About(str(info.get("name") or source.name), channels, labels, LICENCE, REFERENCE, slice_axis)


def find(source: Path) -> list[Found]:
    """The labelled cases."""
    cases = read_dataset(source).part("Tr")
    return [Found(case.name, case.patient, case.image, case.label) for case in cases if case.label is not None]


def write_channels(
    case: Found, images: Path, labels: Path, channels: int, args: argparse.Namespace
) -> Mapping[str, object]:
    """An image of several channels as one file each, voxels and geometry as they are.

    Raises:
        InputError: `SOURCE_CHANNELS` if the image has another number of channels than the description says.
    """
    import nibabel

    image: Any = nibabel.load(case.image)
    found = image.shape[3] if len(image.shape) > 3 else 1
    if found != channels:
        raise InputError(
            "SOURCE_CHANNELS", "channels differ from dataset.json", file=case.image, seen=found, expected=channels
        )
    if channels == 1:
        return copy_pair(case, images, labels, args)
    if args.assume_orientation or args.form:
        raise ConfigError("SOURCE_CHANNELS", "images of several channels keep the header they have", file=case.image)
    for channel in range(channels):
        part = image.slicer[..., channel]
        atomic_write(images / f"{case.name}_{channel:04d}{ENDING}", part.to_filename)
    copy_file(case.label, labels / f"{case.name}{ENDING}")
    return {}


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    made = parser(__doc__ or "", GENERAL)
    add_nifti_options(made)
    made.add_argument("--slice-axis", type=int, choices=(0, 1, 2), help="default: the largest spacing decides")
    args = made.parse_args(words)
    about = describe(args.source, args.slice_axis)

    def write_case(case: Found, images: Path, labels: Path) -> Mapping[str, object]:
        return write_channels(case, images, labels, len(about.channels), args)

    write_raw(args, about, find(args.source), write_case)


if __name__ == "__main__":
    run(main)
