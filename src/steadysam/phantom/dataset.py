"""A drawn data set on disk: nnU-Net v2 raw layout, with frozen sets of shaky centreline prompts beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from steadysam.data.volumes import write_mask, write_volume
from steadysam.errors import ConfigError
from steadysam.files import new_folder, write_json, write_text
from steadysam.phantom.case import SHAPE, SPACING_MM, PhantomCase, draw_case
from steadysam.phantom.shaky import SHAKY, STEADIER, Shake, shaky_centerline
from steadysam.prompts.sets import write_set
from steadysam.prompts.simulate import generator_for
from steadysam.types import Prompts

LABEL = "TI"
_ENDING = ".nii.gz"


def draw_dataset(
    folder: str | Path,
    n_train: int,
    n_test: int,
    seed: int,
    *,
    shape: tuple[int, int, int] = SHAPE,
    shake: Shake = STEADIER,
    test_shake: Shake = SHAKY,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Path:
    """Draw `n_train` + `n_test` cases; the folder appears when it is complete.

    Every case is a function of `seed` and its own name: a larger data set begins with the smaller one.

    Args:
        folder: a new folder; gets `dataset.json`, `cases.csv`, `imagesTr`, `labelsTr`, `promptsTr` and the
            same with `Ts`. The target is label 1, `TI`.
        shake, test_shake: how shaky the hand was that drew the prompts of the training and of the test cases.
        track: wraps the sequence of names for a progress bar.

    Raises:
        ConfigError: `PHANTOM_COUNT`, nothing to draw.
        FileSystemError: `FS_EXISTS`, the folder exists.
    """
    if n_train < 1 or n_test < 0:
        raise ConfigError("PHANTOM_COUNT", "too few cases", seen=(n_train, n_test), expected="at least (1, 0)")
    parts = {f"phantom_{number + 1:03d}": "Tr" for number in range(n_train)}
    parts |= {f"phantom_{number + 501:03d}": "Ts" for number in range(n_test)}
    with new_folder(folder) as inside:
        prompts: dict[str, dict[str, Prompts]] = {"Tr": {}, "Ts": {}}
        for name in track(list(parts)):
            case = draw_case(generator_for(seed, "phantom", name), shape, SPACING_MM, name)
            _write_case(inside, parts[name], case)
            hand = generator_for(seed, "phantom-prompts", name)
            prompts[parts[name]][name] = shaky_centerline(hand, case, shake if parts[name] == "Tr" else test_shake)
        for part, drawn in prompts.items():
            if drawn:
                meta = {
                    "name": f"shaky centreline, {part}",
                    "simulator": "phantom-shaky-centerline",
                    "seed": seed,
                }
                write_set(inside / f"prompts{part}", drawn, meta)
        write_json(inside / "dataset.json", _description(n_train, n_test))
        rows = [f"{name},{name},{part}" for name, part in parts.items()]
        write_text(inside / "cases.csv", "\n".join(["case,patient,split", *rows]) + "\n")
    return Path(folder)


def _write_case(folder: Path, part: str, case: PhantomCase) -> None:
    name = case.volume.name
    write_volume(folder / f"images{part}" / f"{name}_0000{_ENDING}", case.volume.array, case.volume.grid)
    write_mask(folder / f"labels{part}" / f"{name}{_ENDING}", case.mask)


def _description(n_train: int, n_test: int) -> dict[str, object]:
    return {
        "name": "SteadySAM phantom",
        "description": "drawn volumes, no patients: a diseased bowel loop beside healthy look-alikes",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, LABEL: 1},
        "numTraining": n_train,
        "numTest": n_test,
        "file_ending": _ENDING,
        "slice_axis": 2,
        "licence": "CC0-1.0",
    }
