"""Which patients are trained on, and cases at two sizes."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import GRIDS
from steadysam import config as config_module
from steadysam import training_data
from steadysam.config import DataConfig, RunConfig, make_config, to_toml
from steadysam.data.cases import read_dataset
from steadysam.data.slices import fit_masks, prepare_stack
from steadysam.data.volumes import read_volume, write_mask
from steadysam.errors import ConfigError, InputError
from steadysam.methods import METHODS
from steadysam.methods.contract import FrozenConfig, StageSettings, Traits
from steadysam.methods.ldfsam.config import Masks
from steadysam.training_data import draw_patients, load_training_data, make_case, split_of
from steadysam.types import Mask, Preprocess, Prompts
from toys import make_volume

PATIENTS = [f"p{n:02d}" for n in range(23)]
FRACTIONS = [0.01, 0.1, 0.2, 0.25, 0.5, 0.51, 0.9, 1.0]


@pytest.mark.parametrize("seed", range(4))
def test_shares_of_one_seed_are_nested(seed):
    sets = [draw_patients(PATIENTS, fraction, seed) for fraction in FRACTIONS]
    assert all(a <= b for a, b in zip(sets[:-1], sets[1:], strict=True))
    assert [len(found) for found in sets] == [1, 2, 5, 6, 12, 12, 21, 23]


def test_a_share_is_a_function_of_the_patients_and_the_seed():
    a = draw_patients(PATIENTS, 0.3, 5)
    assert a == draw_patients(PATIENTS[::-1], 0.3, 5)
    assert len({draw_patients(PATIENTS, 0.3, seed) for seed in range(8)}) > 4


def test_the_split_says_which_share_was_taken(toy_dataset):
    def split(**more):
        config = RunConfig(data=DataConfig(dataset=str(toy_dataset), **more), method={"name": "unet"})
        return split_of(config, read_dataset(toy_dataset))

    whole, half = split(), split(train_fraction=0.5, subset_seed=3)
    assert (half.val, half.test) == (whole.val, whole.test)
    assert set(half.train) < set(whole.train)
    assert len(half.train) == 2
    assert half.rule == f"{whole.rule}; 0.5 of the training patients, 2 of 4, seed 3"
    assert split(train_fraction=1.0, subset_seed=3).train == whole.train
    assert split(train_fraction=0.5, subset_seed=3, train_patients=2).rule.endswith(
        "first 2 training patients; 0.5 of the training patients, 1 of 2, seed 3"
    )


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01])
def test_impossible_shares(toy_values, fraction):
    toy_values["data"]["train_fraction"] = fraction
    with pytest.raises(ConfigError, match="CONFIG_VALUE.*train_fraction"):
        make_config(toy_values)


def test_defaults_are_not_written_so_that_older_runs_keep_their_text_and_keys(toy_values):
    values = make_config(toy_values).model_dump(mode="json")
    assert list(values["data"])[-1] == "train_patients"
    assert "train_fraction" not in to_toml(values)
    toy_values["data"] |= {"train_fraction": 0.25, "subset_seed": 7}
    again = make_config(make_config(toy_values).model_dump(mode="json"))
    assert (again.data.train_fraction, again.data.subset_seed) == (0.25, 7)


def test_what_selects_an_epoch_is_written_where_it_is_not_the_loss_as_ever():
    assert "select_by" not in StageSettings().model_dump()
    assert StageSettings(select_by="dice").model_dump()["select_by"] == "dice"
    assert Masks().model_dump()["select_by"] == "dice", "an older run of LDFSAM has not said so, and is another one"
    assert Masks(select_by="loss").model_dump()["select_by"] == "loss"


@pytest.fixture
def fine_config(toy_values, monkeypatch):
    """The configuration of a method that looks at slices at 40 pixels, too."""

    class Config(FrozenConfig):
        @property
        def detail_size(self) -> int:
            return 40

    method = SimpleNamespace(Config=Config, TRAITS=Traits(points=False, backbone=False))
    for module in (config_module, training_data):
        monkeypatch.setattr(module, "METHODS", {**METHODS, "fine": method})
    return make_config({**toy_values, "preprocess": {"size": 16, "fit": "pad"}, "method": {"name": "fine"}})


def test_cases_of_a_method_that_looks_twice(fine_config):
    grid = GRIDS["oblique"]
    volume = make_volume(grid)
    mask = Mask(volume.array > 150, grid)
    case = make_case(fine_config, "a", volume, mask, Prompts())
    stack = prepare_stack(volume, Preprocess(16, "pad"), detail=40)
    assert case.stack.detail is not None
    assert case.stack.detail.shape == (5, 1, 40, 40)
    assert np.array_equal(case.stack.detail, stack.detail)  # pyright: ignore
    assert case.masks.shape == (5, 16, 16)
    assert case.detail_masks is not None
    assert np.array_equal(case.detail_masks, fit_masks(mask.array, grid, replace(stack.frame, size=40)))


def test_cases_of_other_methods_have_no_detail(toy_values):
    grid = GRIDS["plain"]
    volume = make_volume(grid)
    case = make_case(make_config(toy_values), "a", volume, Mask(volume.array > 150, grid), Prompts())
    assert case.stack.detail is None
    assert case.detail_masks is None


def test_large_details_are_mapped_from_disk(fine_config, tmp_path, monkeypatch):
    grid = GRIDS["plain"]
    volume = make_volume(grid)
    given = (fine_config, "a", volume, Mask(volume.array > 150, grid), Prompts(), None)
    held = make_case(*given, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
    monkeypatch.setattr(
        training_data, "_SPILL_BYTES", 7_000
    )  # 5 slices: 5 kB in float32 at 16 pixels, 8 kB in bytes at 40
    mapped = make_case(*given, tmp_path)
    assert len(list(tmp_path.rglob("*-detail40*.npy"))) == len(list(tmp_path.rglob("*.npy"))) == 2
    assert isinstance(mapped.stack.detail, np.memmap)
    assert not isinstance(mapped.stack.images, np.memmap)
    assert np.array_equal(mapped.stack.detail, held.stack.detail)  # pyright: ignore
    assert np.array_equal(mapped.detail_masks, held.detail_masks)  # pyright: ignore
    monkeypatch.setattr(training_data, "_SPILL_BYTES", 1_000)
    both = make_case(*given, tmp_path)
    assert isinstance(both.stack.images, np.memmap)
    assert isinstance(both.masks, np.memmap)
    assert np.array_equal(both.masks, held.masks)
    assert both.stack.detail is not None


def test_loaded_cases_carry_details(fine_config):
    data = load_training_data(fine_config, None)
    assert all(case.stack.detail is not None for case in (*data.train, *data.val))


def judge_of(dataset) -> str:
    """Name of the one validation case of the toy data set."""
    config = RunConfig(data=DataConfig(dataset=str(dataset)), method={"name": "unet"})
    (case,) = split_of(config, read_dataset(dataset)).val
    return case.name


@pytest.mark.parametrize("emptied", ["training", "validation"])
def test_a_structure_that_only_one_part_has(toy_dataset, toy_values, tmp_path, caplog, emptied):
    folder = tmp_path / toy_dataset.name
    shutil.copytree(toy_dataset, folder)
    judge = judge_of(toy_dataset)
    for path in (folder / "labelsTr").iterdir():
        if (path.name.removesuffix(".nii.gz") == judge) == (emptied == "validation"):
            labels = read_volume(path)
            write_mask(path, Mask(np.zeros(labels.array.shape, bool), labels.grid))
    toy_values["data"]["dataset"] = str(folder)
    if emptied == "training":
        with pytest.raises(InputError, match="LABEL_EMPTY.*4 training cases"):
            load_training_data(make_config(toy_values), None)
    else:
        load_training_data(make_config(toy_values), None)
        assert "no validation case has a voxel" in caplog.text


def test_a_target_that_is_lost_when_slices_are_fitted(toy_dataset, toy_values, tmp_path):
    folder = tmp_path / toy_dataset.name
    shutil.copytree(toy_dataset, folder)
    for path in (folder / "labelsTr").iterdir():
        labels = read_volume(path)
        speck = np.zeros(labels.array.shape, bool)
        speck[2, 4, 1] = True  # of 20 rows 16 are kept, and not this one
        write_mask(path, Mask(speck, labels.grid))
    values = {**toy_values, "data": {**toy_values["data"], "dataset": str(folder)}, "preprocess": {"size": 16}}
    with pytest.raises(InputError, match=r"LABEL_EMPTY.*fitted to 16 x 16[\s\S]*raise preprocess.size"):
        load_training_data(make_config(values), None)


def test_a_setting_of_another_method_is_said_to_be_one(toy_values):
    values = {**toy_values, "method": {"name": "detector", "masks": {"epochs": 1}}}
    with pytest.raises(ConfigError, match=r"no setting 'method.masks'[\s\S]*it is a setting of .*ldfsam"):
        make_config(values)
