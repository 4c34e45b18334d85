"""Cardiac MRI as a new user would take it: train, simulate and convert prompts, predict, audit, evaluate.

Needs a folder of data sets in nnU-Net raw layout, one of them ACDC (Bernard et al., IEEE TMI 2018), named by the
environment variable STEADYSAM_TEST_DATA. What is tested is the way, not the quality: the network is tiny and
trains for seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers lie beside the other tests
from steadysam.data.volumes import read_grid, read_label_map, read_volume  # noqa: E402
from steadysam.files import read_json, sha256_file  # noqa: E402
from steadysam.geometry import distance_outside_mm  # noqa: E402
from steadysam.prompts.files import read_prompts  # noqa: E402
from steadysam.runs import load_run  # noqa: E402
from steadysam.segmenting import segment  # noqa: E402
from toys import leftovers, steadysam  # noqa: E402

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


@pytest.fixture(scope="module")
def work(acdc, tmp_path_factory) -> Path:
    """A run trained on six patients, prompts for all test cases, and the prediction of the first."""
    folder = tmp_path_factory.mktemp("acdc")
    settings = ["data.train_patients=6", "compute.cache=off", "compute.threads=1"]
    settings += [f"method.stage{n}.{key}" for n in (1, 2) for key in ("epochs=6", "learning_rate=2e-3", "batch_size=8")]
    words = ["train", acdc, "--label", "LV", "--backbone", "sam-test", "--size", 64, "--device", "cpu"]
    words += [word for setting in settings for word in ("--set", setting)]
    assert steadysam(*words, "-o", folder / "run") == 0
    words = ["prompts", "simulate", acdc, "--label", "LV", "--part", "Ts", "--seed", 1]
    assert steadysam(*words, "-o", folder / "promptsTs") == 0
    image = first_test_image(acdc)
    words = ["predict", "-i", image, "--prompts", folder / "promptsTs" / f"{case_of(image)}.json", "-m", folder / "run"]
    assert steadysam(*words, "-o", folder / "out", "--cache", "off", "--device", "cpu") == 0
    return folder


def first_test_image(acdc: Path) -> Path:
    return sorted((acdc / "imagesTs").glob("*_0000.nii.gz"))[0]


def case_of(image: Path) -> str:
    return image.name.removesuffix("_0000.nii.gz")


def test_the_run_kept_patients_apart(acdc, work):
    split = read_json(work / "run" / "run.json")["data"]["split"]
    assert len(split["train"]) == 6
    assert split["val"]
    names = [case_of(path) for path in sorted((acdc / "imagesTs").glob("*_0000.nii.gz"))]
    assert sorted(split["test"]) == names
    assert not set(split["train"]) & set(split["val"])


def test_training_lowered_the_loss(work):
    for stage in ("saliency", "decoder"):
        rows = (work / "run" / "logs" / f"{stage}-metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("train_loss")
        losses = [float(row.split(",")[column]) for row in rows[1:]]
        assert len(losses) == 6
        assert losses[-1] < losses[0]


def test_the_mask_lies_on_the_image(acdc, work):
    image = first_test_image(acdc)
    mask = work / "out" / f"{case_of(image)}.nii.gz"
    before, after = nib.load(image), nib.load(mask)  # pyright: ignore
    assert before.affine.tobytes() == after.affine.tobytes()  # pyright: ignore
    for field in ("pixdim", "sform_code", "qform_code", "xyzt_units", "srow_x", "srow_y", "srow_z"):
        assert before.header[field].tobytes() == after.header[field].tobytes(), field  # pyright: ignore
    labels, grid = read_label_map(mask)
    assert grid.key() == read_grid(image).key()
    assert set(np.unique(labels)) <= {0, 1}


def test_the_record_names_its_inputs(acdc, work):
    image = first_test_image(acdc)
    record = read_json(work / "out" / "run.json")
    (case,) = record["cases"]
    assert case["image"]["sha256"] == sha256_file(image)
    assert case["prompts"]["sources"] == ["simulated"]
    assert case["prompts"]["hash"] == read_prompts(work / "promptsTs" / f"{case_of(image)}.json").key()
    assert record["run"]["weights_sha256"] == sha256_file(work / "run" / "weights.safetensors")
    assert leftovers(work) == []


def test_the_audit_and_its_markups(acdc, work):
    """Every prompt has a verdict with a reason; the markups read back as the accepted ones, at the same places."""
    image = first_test_image(acdc)
    name, grid = case_of(image), read_grid(image)
    given = {p.id: p for p in read_prompts(work / "promptsTs" / f"{name}.json").points}
    audit = read_json(work / "out" / f"{name}.audit.json")
    assert [row["id"] for row in audit["prompts"]] == list(given)
    assert all(row["reason"] for row in audit["prompts"])
    assert audit["counts"]["accepted"] + audit["counts"]["rejected"] == len(given)
    kept = read_prompts(work / "out" / f"{name}.audit.mrk.json", grid).points
    assert [p.id for p in kept] == [row["id"] for row in audit["prompts"] if row["verdict"] == "accepted"]
    for point in kept:
        assert np.allclose(point.xyz_mm, given[point.id].xyz_mm, atol=1e-3)
    assert distance_outside_mm(np.array([p.xyz_mm for p in given.values()]), grid).max() == 0


def test_the_python_api_gives_the_same_mask(acdc, work):
    image = first_test_image(acdc)
    run, volume = load_run(work / "run", "cpu"), read_volume(image)
    prompts = read_prompts(work / "promptsTs" / f"{case_of(image)}.json", volume.grid)
    result = segment(run, volume, prompts)
    assert np.array_equal(result.mask.array, read_label_map(work / "out" / f"{case_of(image)}.nii.gz")[0] > 0)


def test_evaluate_one_of_the_test_cases(acdc, work):
    words = ["evaluate", work / "out", acdc / "labelsTs", "--label", "LV", "--images", acdc / "imagesTs"]
    assert steadysam(*words, "-o", work / "report") == 6, "nine labels have no mask"
    assert steadysam(*words, "-o", work / "report", "--allow-missing") == 0
    page = (work / "report" / "report.html").read_text()
    assert case_of(first_test_image(acdc)) in page
    rows = (work / "report" / "slices.csv").read_text().splitlines()
    assert len(rows) == 1 + read_grid(first_test_image(acdc)).depth


def test_scribbles_of_annotators_become_prompts(acdc, work, tmp_path):
    """Valvano et al.'s scribbles (4 is: not annotated) as points lead to a mask, too."""
    image = first_test_image(acdc)
    found = sorted(acdc.glob(f"prompts/**/{case_of(image)}*.nii.gz"))
    if not found:
        pytest.skip("no scribbles for this case")
    points = tmp_path / f"{case_of(image)}.json"
    words = ["prompts", "convert", found[0], "-o", points, "--value", 3, "--ignore", 0, "--ignore", 4]
    assert steadysam(*words, "--image", image) == 0
    assert {p.source for p in read_prompts(points).points} == {"scribble"}
    assert steadysam("prompts", "check", points, "--image", image) == 0
    words = ["predict", "-i", image, "--prompts", points, "-m", work / "run", "-o", tmp_path / "out", "--cache", "off"]
    assert steadysam(*words, "--set", "tau=0.3") == 0
    assert read_json(tmp_path / "out" / "run.json")["prompt_sources"] == ["scribble"]
