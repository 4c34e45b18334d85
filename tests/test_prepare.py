"""Official downloads become data sets that train as they are: tiny files in the layout of each download."""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import make_affine
from steadysam.data.cases import Dataset, read_dataset, resolve_label
from steadysam.data.splits import split_cases
from steadysam.data.volumes import read_grid, read_label_map, read_volume, write_volume
from steadysam.errors import ConfigError, InputError
from steadysam.files import read_json, write_json
from steadysam.types import Grid
from toys import leftovers

PREPARE = Path(__file__).parents[1] / "benchmarks" / "prepare"
SHAPE = (12, 14, 5)


@pytest.fixture(scope="module")
def prepare():
    """The commands of benchmarks/prepare, which is a folder of scripts and not a package."""
    sys.path.insert(0, str(PREPARE))
    try:
        names = ("raw_folder", "kits23", "acdc", "msd", "fumpe")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(PREPARE))


def voxels(seed: int, values: int, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """An image and a label map that holds 0 to `values`."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for value in range(1, values + 1):
        labels[2 * value : 2 * value + 2, 3:9, 1:] = value
    return rng.integers(-200, 300, shape).astype(np.int16), labels


def sides(dataset: Dataset, **how: Any) -> dict[str, set[str]]:
    """Patient -> parts of the split in which it stands."""
    found = defaultdict(set)
    for part, cases in split_cases(dataset, **{"seed": 0, **how}).parts.items():
        for case in cases:
            found[case.patient].add(part)
    return found


def kits(folder: Path, count: int = 10, affine: np.ndarray | None = None) -> Path:
    """Slices along the first axis, as KiTS has them."""
    affine = make_affine((3.0, 0.8, 0.8), order=(2, 1, 0), flips=(-1, -1, -1)) if affine is None else affine
    for n in range(count):
        image, labels = voxels(n, 3)
        grid = Grid(SHAPE, affine, 0)
        write_volume(folder / "dataset" / f"case_{n:05d}" / "imaging.nii.gz", image, grid)
        write_volume(folder / "dataset" / f"case_{n:05d}" / "segmentation.nii.gz", labels, grid)
    (folder / "dataset" / "kits23.json").write_text("{}", "utf-8")
    return folder


def acdc(folder: Path, training: int = 6, testing: int = 2) -> Path:
    for n in range(1, training + testing + 1):
        part, name = ("training", f"patient{n:03d}") if n <= training else ("testing", f"patient{100 + n}")
        place = folder / "database" / part / name
        place.mkdir(parents=True)
        (place / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\n", "utf-8")
        for frame in (1, 12):
            image, labels = voxels(100 * n + frame, 3)
            grid = Grid(SHAPE, make_affine((1.5, 1.5, 10.0), degrees=17), 2)
            write_volume(place / f"{name}_frame{frame:02d}.nii.gz", image, grid)
            write_volume(place / f"{name}_frame{frame:02d}_gt.nii.gz", labels, grid)
    return folder


def msd(folder: Path, channels: int = 1, count: int = 5) -> Path:
    import nibabel

    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    rows = []
    affine = make_affine((1.0, 1.1, 3.0), degrees=5)
    for n in range(count):
        image, labels = voxels(n, 2)
        array = image if channels == 1 else np.stack([image + 10 * c for c in range(channels)], -1)
        name = f"organ_{n:03d}.nii.gz"
        for part, content in (("imagesTr", array.astype(np.float32)), ("labelsTr", labels)):
            nibabel.Nifti1Image(content, affine).to_filename(folder / part / name)
        (folder / "imagesTr" / f"._{name}").write_bytes(b"mac")
        rows.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    modality = {str(c): word for c, word in enumerate(("T2", "ADC")[:channels])}
    labels = {"0": "background", "1": "PZ", "2": "TZ"}
    info = {"name": "ORGAN", "modality": modality, "labels": labels, "training": rows, "test": []}
    write_json(folder / "dataset.json", info)
    return folder


def fumpe(folder: Path, upside_down: bool, slices: int = 5, count: int = 3) -> dict[str, np.ndarray]:
    """DICOM series whose file names run with or against their positions; returns each mask `(I, J, K)` by position."""
    sitk: Any = pytest.importorskip("SimpleITK")
    from scipy.io import savemat

    (folder / "GroundTruth").mkdir(parents=True)
    truths = {}
    for n in range(1, count + 1):
        place = folder / "CT_scans" / f"PAT{n:03d}"
        place.mkdir(parents=True)
        mask = np.zeros((10, 8, slices), bool)
        mask[2:5, 3:7, 1] = mask[2:3, 3:7, 2] = True
        image = np.where(mask, 60, -900).astype(np.int16)
        image[0, 0, :] = 10 * np.arange(slices)  # tells slices apart
        for k in range(slices):
            number = slices - k if upside_down else k + 1
            _write_dicom(sitk, place / f"D{number:04d}.dcm", image[:, :, k].T, 50.0 + 2.5 * k, number, n)
        stored = mask.transpose(1, 0, 2)[:, :, ::-1] if upside_down else mask.transpose(1, 0, 2)
        savemat(folder / "GroundTruth" / f"PAT{n:03d}.mat", {"Mask": stored.astype(np.uint8)}, do_compression=True)
        truths[f"PAT{n:03d}"] = mask
    return truths


def _write_dicom(sitk: Any, path: Path, rows: np.ndarray, z: float, number: int, patient: int) -> None:
    image = sitk.GetImageFromArray(rows[None])
    image.SetSpacing((0.7, 0.7, 2.5))
    for tag, value in {
        "0008|0060": "CT",
        "0020|000d": f"1.2.3.{patient}",
        "0020|000e": f"1.2.3.{patient}.1",
        "0020|0013": str(number),
        "0020|0032": f"-100\\-120\\{z}",
        "0020|0037": "1\\0\\0\\0\\1\\0",
        "0028|1052": "0",
        "0028|1053": "1",
    }.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def test_kits_is_copied_as_it_is_and_split_by_patient(prepare, tmp_path):
    source, output = kits(tmp_path / "kits23"), tmp_path / "Dataset921_KiTS23"
    prepare.kits23.main([str(source), "-o", str(output)])
    dataset = read_dataset(output)
    assert (len(dataset.part("Tr")), len(dataset.part("Ts"))) == (8, 2)
    assert dataset.slice_axis == 0  # read from the affine: the array axis along the body
    assert resolve_label(dataset, "all") == (1, 2, 3)
    for case in dataset.cases:
        assert case.label is not None
        assert case.image.read_bytes() == (source / "dataset" / case.name / "imaging.nii.gz").read_bytes()
        assert case.label.read_bytes() == (source / "dataset" / case.name / "segmentation.nii.gz").read_bytes()
    split = split_cases(dataset, seed=7, fold=0)
    assert [len(cases) for cases in split.parts.values()] == [7, 1, 2]
    assert read_json(output / "dataset.json")["channel_names"] == {"0": "CT"}  # by which nnU-Net normalises


def test_links_instead_of_copies(prepare, tmp_path):
    source, output = kits(tmp_path / "kits23", 3), tmp_path / "D"
    prepare.kits23.main([str(source), "-o", str(output), "--link"])
    links = [path for path in output.rglob("*.nii.gz")]
    assert len(links) == 6
    assert all(path.is_symlink() and path.resolve().is_file() for path in links)
    assert len(read_dataset(output).cases) == 3


def test_folds_leave_their_test_patients_out(prepare, tmp_path):
    prepare.kits23.main([str(kits(tmp_path / "k")), "-o", str(tmp_path / "D"), "--folds", "5", "--seed", "3"])
    dataset = read_dataset(tmp_path / "D")
    assert len(dataset.part("Tr")) == 10
    tested = []
    for fold in range(5):
        split = split_cases(dataset, seed=0, fold=fold)
        assert [len(cases) for cases in split.parts.values()] == [7, 1, 2]
        tested += [case.name for case in split.test]
    assert sorted(tested) == [f"case_{n:05d}" for n in range(10)]
    with pytest.raises(ConfigError) as caught:
        prepare.kits23.main([str(tmp_path / "k"), "-o", str(tmp_path / "E"), "--folds", "11"])
    assert caught.value.code == "SPLIT_FOLD"


def test_both_frames_of_an_acdc_patient_stay_together(prepare, tmp_path):
    source = acdc(tmp_path / "ACDC")
    prepare.acdc.main([str(source), "-o", str(tmp_path / "D")])
    dataset = read_dataset(tmp_path / "D")
    assert sorted(case.name for case in dataset.part("Ts")) == [
        *("patient107_ED", "patient107_ES", "patient108_ED", "patient108_ES")
    ]
    assert len(dataset.part("Tr")) == 12
    assert all(len(parts) == 1 for parts in sides(dataset, fold=0).values())
    assert resolve_label(dataset, "LV") == (3,)
    source_grid = read_grid(source / "database" / "training" / "patient001" / "patient001_frame12.nii.gz")
    case = next(case for case in dataset.cases if case.name == "patient001_ES")
    assert read_grid(case.image).affine.tobytes() == source_grid.affine.tobytes()
    assert "patient001_ES,patient001,Tr,frame12,DCM" in (tmp_path / "D" / "cases.csv").read_text("utf-8")
    # with folds, the official test set stays, and each fold's cases are its validation
    prepare.acdc.main([str(source), "-o", str(tmp_path / "E"), "--folds", "3", "--frames", "ED"])
    folds = read_json(tmp_path / "E" / "splits_final.json")
    assert [(len(f["train"]), len(f["val"])) for f in folds] == [(4, 2)] * 3
    prepare.acdc.main([str(source), "-o", str(tmp_path / "F"), "--ignore-test"])
    dataset = read_dataset(tmp_path / "F")
    assert len(dataset.cases) == 16
    assert all(len(parts) == 1 for parts in sides(dataset).values())


def test_acdc_without_its_info_or_a_frame(prepare, tmp_path):
    source = acdc(tmp_path / "ACDC", 3, 0)
    info = source / "database" / "training" / "patient002" / "Info.cfg"
    info.write_text("ED: 1\n", "utf-8")
    with pytest.raises(InputError) as caught:
        prepare.acdc.main([str(source), "-o", str(tmp_path / "D")])
    assert (caught.value.code, caught.value.file) == ("SOURCE_INFO", str(info))
    info.unlink()
    with pytest.raises(InputError) as caught:
        prepare.acdc.main([str(source), "-o", str(tmp_path / "D")])
    assert caught.value.code == "SOURCE_MISSING"


def test_an_msd_task_becomes_raw_layout_and_channels_are_taken_apart(prepare, tmp_path):
    source = msd(tmp_path / "Task05_Organ", channels=2)
    prepare.msd.main([str(source), "-o", str(tmp_path / "D"), "--slice-axis", "2"])
    dataset = read_dataset(tmp_path / "D")
    assert dict(dataset.labels) == {"background": 0, "PZ": 1, "TZ": 2}
    assert read_json(tmp_path / "D" / "dataset.json")["channel_names"] == {"0": "T2", "1": "ADC"}
    assert {case.name for case in dataset.cases} == {f"organ_{n:03d}" for n in range(5)}
    case = dataset.part("Tr")[0]
    wanted, labels = voxels(int(case.name[-3:]), 2)
    second = read_dataset(tmp_path / "D", channel=1).part("Tr")[0]
    for channel, image in enumerate((case.image, second.image)):
        volume = read_volume(image)
        assert np.array_equal(volume.array, wanted + 10 * channel)
        assert np.allclose(volume.grid.affine, make_affine((1.0, 1.1, 3.0), degrees=5), atol=1e-5)
    assert case.label is not None
    assert np.array_equal(read_label_map(case.label)[0], labels)


def test_an_msd_task_of_one_channel_is_copied(prepare, tmp_path):
    source = msd(tmp_path / "Task04_Organ")
    prepare.msd.main([str(source), "-o", str(tmp_path / "D")])
    case = read_dataset(tmp_path / "D").part("Tr")[0]
    assert case.image.read_bytes() == (source / "imagesTr" / f"{case.name}.nii.gz").read_bytes()
    info = read_json(source / "dataset.json")
    write_json(source / "dataset.json", {**info, "modality": {"0": "T2", "1": "ADC"}})
    with pytest.raises(InputError) as caught:
        prepare.msd.main([str(source), "-o", str(tmp_path / "E")])
    assert caught.value.code == "SOURCE_CHANNELS"
    assert not (tmp_path / "E").exists()


@pytest.mark.parametrize("upside_down", [False, True])
def test_fumpe_masks_follow_the_names_of_the_files(prepare, tmp_path, capsys, upside_down):
    truths = fumpe(tmp_path / "FUMPE", upside_down)
    prepare.fumpe.main([str(tmp_path / "FUMPE"), "-o", str(tmp_path / "D"), "--folds", "3"])
    dataset = read_dataset(tmp_path / "D")
    assert {case.name for case in dataset.cases} == set(truths)
    for case in dataset.cases:
        volume = read_volume(case.image)
        assert volume.array.dtype == np.int16
        assert volume.array[0, 0, :].tolist() == [0, 10, 20, 30, 40]  # by position, whatever the names
        assert np.allclose(volume.grid.affine @ [0, 0, 0, 1], [100, 120, 50, 1])  # DICOM's LPS -> RAS
        assert np.allclose(volume.grid.spacing_mm, (0.7, 0.7, 2.5))
        assert case.label is not None
        labels, _ = read_label_map(case.label)
        assert np.array_equal(labels > 0, truths[case.name])
    assert "PAT001,PAT001,Tr,0.0,0.75" in (tmp_path / "D" / "cases.csv").read_text("utf-8")
    # reversed, the 12 voxels of slice 1 would mark air in slice 3, the 4 of slice 2 stay where they are
    assert "warning" not in capsys.readouterr().err


def test_fumpe_warns_where_the_other_order_fits_better_and_refuses_other_shapes(prepare, tmp_path, capsys):
    from scipy.io import savemat

    truths = fumpe(tmp_path / "FUMPE", False)
    truth = tmp_path / "FUMPE" / "GroundTruth" / "PAT002.mat"
    stored = truths["PAT002"].transpose(1, 0, 2).astype(np.uint8)
    savemat(truth, {"Mask": stored[:, :, ::-1]})
    prepare.fumpe.main([str(tmp_path / "FUMPE"), "-o", str(tmp_path / "D"), "--folds", "3"])
    assert "warning: PAT002" in capsys.readouterr().err
    savemat(truth, {"Mask": stored[:, :, 1:]})
    with pytest.raises(InputError) as caught:
        prepare.fumpe.main([str(tmp_path / "FUMPE"), "-o", str(tmp_path / "E"), "--folds", "3"])
    assert (caught.value.code, caught.value.seen) == ("SOURCE_GRID", (8, 10, 4))
    savemat(truth, {"Other": stored})
    with pytest.raises(InputError) as caught:
        prepare.fumpe.main([str(tmp_path / "FUMPE"), "-o", str(tmp_path / "E"), "--folds", "3"])
    assert caught.value.code == "SOURCE_MAT"
    truth.unlink()
    (tmp_path / "FUMPE" / "CT_scans" / "PAT003").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as caught:
        prepare.fumpe.main([str(tmp_path / "FUMPE"), "-o", str(tmp_path / "E"), "--folds", "3"])
    assert caught.value.code == "SOURCE_MISSING"
    assert all(part in str(caught.value.seen) for part in ("PAT002.mat", "CT_scans/PAT003"))


def test_slices_are_ordered_by_number_not_by_letters(prepare):
    mask = np.zeros((2, 3, 3), bool)
    mask[0, 1, 0] = True  # the first file by name: D1
    placed = prepare.fumpe.place(mask, ["D10.dcm", "D2.dcm", "D1.dcm"])
    assert np.argwhere(placed).tolist() == [[1, 0, 2]]


def test_what_is_missing_or_wrong_is_named_and_nothing_is_left_behind(prepare, tmp_path):
    with pytest.raises(InputError) as caught:
        prepare.kits23.main([str(tmp_path), "-o", str(tmp_path / "D")])
    assert caught.value.code == "SOURCE_EMPTY"
    source = kits(tmp_path / "kits23", 4)
    (source / "dataset" / "case_00001" / "imaging.nii.gz").unlink()
    (source / "dataset" / "case_00002" / "segmentation.nii.gz").unlink()
    with pytest.raises(InputError) as caught:
        prepare.kits23.main([str(source), "-o", str(tmp_path / "D")])
    assert caught.value.code == "SOURCE_MISSING"
    assert "case_00001" in str(caught.value.seen)
    assert "case_00002" in str(caught.value.seen)
    turned = kits(tmp_path / "turned", 3)
    for name in ("imaging", "segmentation"):
        path = turned / "dataset" / "case_00002" / f"{name}.nii.gz"
        write_volume(path, voxels(2, 3)[name == "segmentation"], Grid(SHAPE, make_affine((1.0, 1.0, 3.0)), 2))
    with pytest.raises(InputError) as caught:
        prepare.kits23.main([str(turned), "-o", str(tmp_path / "D")])
    assert caught.value.code == "SOURCE_AXIS"
    source = kits(tmp_path / "other", 3)
    image, labels = voxels(0, 3)
    label = source / "dataset" / "case_00002" / "segmentation.nii.gz"
    good = read_grid(label)
    write_volume(label, labels, Grid(SHAPE, make_affine((1.0, 1.0, 1.0)), 0))
    with pytest.raises(InputError) as caught:
        prepare.kits23.main([str(source), "-o", str(tmp_path / "D")])
    assert caught.value.code == "LABEL_GRID"
    write_volume(label, labels + 3 * (labels == 3), good)
    with pytest.raises(InputError) as caught:
        prepare.kits23.main([str(source), "-o", str(tmp_path / "D")])
    assert caught.value.code == "LABEL_UNKNOWN"
    assert not (tmp_path / "D").exists()
    assert leftovers(tmp_path) == []


def test_an_orientation_is_assumed_only_when_told_and_then_written(prepare, tmp_path):
    source = kits(tmp_path / "kits23", 3)
    import nibabel

    for path in source.rglob("*.nii.gz"):
        image: Any = nibabel.load(path)
        array, header = np.asarray(image.dataobj), image.header
        header["qform_code"] = header["sform_code"] = 0
        nibabel.save(nibabel.Nifti1Image(array, None, header), path)
        raw: Any = nibabel.load(path)
        assert (int(raw.header["qform_code"]), int(raw.header["sform_code"])) == (0, 0)
    with pytest.raises(InputError) as caught:
        prepare.kits23.main([str(source), "-o", str(tmp_path / "D")])
    assert caught.value.code == "IMG_NO_ORIENTATION"
    prepare.kits23.main([str(source), "-o", str(tmp_path / "D"), "--assume-orientation", "LPS"])
    grid = read_grid(read_dataset(tmp_path / "D").cases[0].image)
    assert np.allclose(np.diag(grid.affine), [-3.0, -0.8, 0.8, 1.0])


def test_help_says_source_licence_and_what_is_done(prepare, capsys):
    wanted = {"kits23": "CC BY-NC-SA", "acdc": "registration", "msd": "CC BY-SA 4.0", "fumpe": "CC BY 4.0"}
    for name, licence in wanted.items():
        with pytest.raises(SystemExit):
            getattr(prepare, name).main(["--help"])
        text = capsys.readouterr().out
        for word in (licence, "Source page", "Nothing is downloaded", "--folds", "Layout expected"):
            assert word in text, (name, word)


def test_a_prepared_data_set_is_ready_for_training(prepare, tmp_path):
    from steadysam.config import make_config
    from steadysam.training_data import load_training_data
    from toys import toy_run_values

    prepare.acdc.main([str(acdc(tmp_path / "ACDC", 3, 1)), "-o", str(tmp_path / "D"), "--frames", "ED"])
    values = toy_run_values(tmp_path / "D")
    values["data"].update(label="LV", fold=0)
    data = load_training_data(make_config(values), None)
    assert data.record["split"]["test"] == ["patient104_ED"]
    assert data.record["slice_axis"] == 2
    assert (len(data.train), len(data.val)) == (2, 1)
    assert all(case.masks[1:].any(axis=(1, 2)).all() and not case.masks[0].any() for case in data.train)
