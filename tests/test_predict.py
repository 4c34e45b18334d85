"""Prediction of files: masks on the input grid bit for bit, audits, the record, batches with bad cases."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from conftest import GRIDS, make_affine
from steadysam.data.volumes import read_grid, read_label_map, read_probability, read_volume, write_volume
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import BatchError, InputError
from steadysam.evaluate import evaluate_folder
from steadysam.files import read_json, sha256_file
from steadysam.geometry import grids_agree, voxel_to_ras
from steadysam.jobs import Job, find_jobs, jobs_of_part
from steadysam.prediction import PredictOptions, predict
from steadysam.prompts.files import read_prompts, write_prompts
from steadysam.runs import load_run, versions
from steadysam.types import Grid, Prompts
from toys import click, leftovers, make_volume, some_prompts

CASES = ("a", "b", "c")
GEOMETRY = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


@pytest.fixture(scope="module")
def run(toy_run):
    return load_run(toy_run, "cpu")


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Three cases on three different grids, with nnU-Net's channel number, and their prompt files."""
    images, prompts = tmp_path / "imagesTs", tmp_path / "promptsTs"
    for name, grid in zip(CASES, (GRIDS["oblique"], GRIDS["sagittal"], GRIDS["flipped"]), strict=True):
        write_volume(images / f"{name}_0000.nii.gz", make_volume(grid).array, grid)
        write_prompts(prompts / f"{name}.json", some_prompts(grid))
    return images, prompts


def test_a_file(run, folders, tmp_path):
    images, prompts = folders
    jobs = find_jobs(images / "a_0000.nii.gz", prompts / "a.json")
    assert [job.name for job in jobs] == ["a"]
    record = predict(run, jobs, tmp_path / "out")
    assert record == tmp_path / "out" / "run.json"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.audit.json", "a.audit.mrk.json", "a.nii.gz", "run.json"]
    labels, grid = read_label_map(tmp_path / "out" / "a.nii.gz")
    assert set(np.unique(labels)) == {0, 1}
    assert grid.key() == read_grid(images / "a_0000.nii.gz").key()


def test_a_folder_and_what_the_record_says(run, folders, tmp_path):
    images, prompts = folders
    out = tmp_path / "out"
    predict(run, find_jobs(images, prompts), out, PredictOptions(settings={"tau": 0.5}))
    record = read_json(out / "run.json")
    assert record["steadysam"] == versions()
    assert set(record["steadysam"]) >= {"steadysam", "torch", "transformers", "numpy", "python"}
    assert record["method"] == "spd"
    assert record["run"]["weights_sha256"] == sha256_file(run.folder / "weights.safetensors")
    assert record["config"] == run.config.model_dump(mode="json")
    assert record["overrides"] == {"tau": 0.5}
    assert record["failures"] == []
    assert record["prompted"] is True
    assert record["prompt_sources"] == ["human"]
    assert len(record["prompt_set_hash"]) == 64
    assert record["seconds"] > 0
    assert [case["case"] for case in record["cases"]] == list(CASES)
    for case in record["cases"]:
        name = case["case"]
        assert case["image"]["sha256"] == sha256_file(images / f"{name}_0000.nii.gz")
        assert case["prompts"]["file_sha256"] == sha256_file(prompts / f"{name}.json")
        assert case["prompts"]["hash"] == read_prompts(prompts / f"{name}.json").key()
        assert case["mask_sha256"] == sha256_file(out / f"{name}.nii.gz")
        assert set(case["seconds"]) == {"read", "segment", "write"}
        assert case["slice_axis"] == read_grid(images / f"{name}_0000.nii.gz").slice_axis
        assert case["notes"]["foreground_voxels"] == int(read_label_map(out / f"{name}.nii.gz")[0].sum())


def test_probabilities_are_those_of_the_masks(run, folders, tmp_path):
    images, prompts = folders
    for threshold in (0.5, 0.2):
        options = PredictOptions(probabilities=True, threshold=threshold)
        predict(run, find_jobs(images, prompts), tmp_path / "out", options)
        for name in CASES:
            mask, grid = read_label_map(tmp_path / "out" / f"{name}.nii.gz")
            probability, own = read_probability(tmp_path / "out" / "probabilities" / f"{name}.nii.gz")
            assert own.key() == grid.key()
            assert 0 < probability.min() < probability.max() < 1
            clear = abs(probability - threshold) > 1e-4
            assert ((probability > threshold) == (mask > 0))[clear].all()
    assert len(evaluate_folder(tmp_path / "out", tmp_path / "out").cases) == 3, "probabilities are no masks"


def test_the_same_command_gives_the_same_bytes(run, folders, tmp_path):
    """Without a cache, with a cold one, with a warm one, alone or in a batch."""
    images, prompts = folders
    cache = EmbeddingCache(tmp_path / "cache")
    predict(run, find_jobs(images, prompts), tmp_path / "0")
    predict(run, find_jobs(images, prompts), tmp_path / "1", cache=cache)
    predict(run, find_jobs(images, prompts), tmp_path / "2", cache=cache)
    predict(run, find_jobs(images / "b_0000.nii.gz", prompts / "b.json"), tmp_path / "3")
    for name in CASES:
        for ending in ("nii.gz", "audit.json", "audit.mrk.json"):
            files = [tmp_path / str(n) / f"{name}.{ending}" for n in range(4)]
            contents = {path.read_bytes() for path in files if path.exists()}
            assert len(contents) == 1, f"{name}.{ending}"


def test_predicting_again_replaces_the_files(run, folders, tmp_path):
    images, prompts = folders
    out = tmp_path / "out"
    predict(run, find_jobs(images, prompts), out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.json"}
    predict(run, find_jobs(images, prompts), out)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != "run.json"} == before


def test_masks_of_an_earlier_call_are_told_of(run, folders, tmp_path, caplog):
    images, prompts = folders
    predict(run, find_jobs(images, prompts), tmp_path / "out")
    caplog.clear()
    predict(run, find_jobs(images / "a_0000.nii.gz", prompts / "a.json"), tmp_path / "out")
    assert "holds masks of an earlier call, which evaluate would score: b, c" in caplog.text
    assert evaluate_folder(tmp_path / "out", tmp_path / "out").foreign == ("b", "c")


def test_empty_masks_are_told_of(toy_run, folders, tmp_path, caplog):
    images, prompts = folders
    predict(load_run(toy_run, "cpu", tau=1.0, empty="empty_mask"), find_jobs(images, prompts), tmp_path / "out")
    assert "3 of 3 masks are empty" in caplog.text


def test_images_of_training_are_told_of_and_can_be_left_out(run, toy_dataset, tmp_path, caplog):
    split = run.record["data"]["split"]
    jobs = find_jobs(toy_dataset / "imagesTr", run.folder / "prompts")
    record = read_json(predict(run, jobs, tmp_path / "out"))
    parts = {case["case"]: case["part"] for case in record["cases"]}
    assert parts == {**dict.fromkeys(split["train"], "train"), **dict.fromkeys(split["val"], "val")}
    counts = f"{len(split['train'])} of 5 images trained this run and {len(split['val'])} chose its epochs"
    assert counts in caplog.text
    evaluation = evaluate_folder(tmp_path / "out", toy_dataset / "labelsTr")
    assert set(evaluation.trained) == set(parts)
    assert [job.name for job in jobs_of_part(run, jobs, "val")] == split["val"]
    with pytest.raises(InputError, match="PREDICT_PART.*'test'"):
        jobs_of_part(run, jobs, "test")
    own = jobs_of_part(run, jobs, "val")
    record = predict(run, own, tmp_path / "val", PredictOptions(part="val"))
    assert read_json(record)["part"] == "val"
    assert evaluate_folder(tmp_path / "val", toy_dataset / "labelsTr").problem() is None
    predict(run, own, tmp_path / "val")  # the same cases, as nobody asked for a part
    missing = evaluate_folder(tmp_path / "val", toy_dataset / "labelsTr").missing_predictions
    assert set(missing) == set(split["train"])
    hashes = run.record["data"]["image_hashes"]
    assert hashes == {path.name[:-12]: sha256_file(path) for path in toy_dataset.rglob("*_0000.nii.gz")}


def test_slices_that_lie_otherwise_than_in_training_are_told_of(run, tmp_path, caplog):
    record = {**run.record, "data": {**run.record["data"], "slice_axis": 2}}
    jobs = []
    for name, spacing in (("thin", (5.0, 1.0, 1.0)), ("as trained", (1.0, 1.0, 5.0)), ("even", (1.2, 1.0, 1.0))):
        grid = Grid((8, 9, 7), make_affine(spacing), 2)
        image, prompts = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}.json"
        write_volume(image, make_volume(grid).array, grid)
        write_prompts(prompts, some_prompts(grid))
        jobs.append(Job(name, image, prompts))
    predict(replace(run, record=record), jobs, tmp_path / "out", PredictOptions(slice_axis=2))
    assert "1 of 3 images were cut across axis 2, as in training, but" in caplog.text
    assert "longest along another: thin; --slice-axis chooses" in caplog.text
    caplog.clear()
    predict(replace(run, record=record), jobs[:1], tmp_path / "other", PredictOptions(slice_axis=0))
    assert "as in training" not in caplog.text


def test_an_image_of_one_value_is_told_of(run, folders, tmp_path, caplog):
    images, prompts = folders
    grid = GRIDS["oblique"]
    write_volume(images / "a_0000.nii.gz", np.full(grid.shape, 3, np.int16), grid)
    predict(run, find_jobs(images, prompts), tmp_path / "out")
    assert caplog.text.count("all voxels of the image are alike") == 1
    assert "a_0000.nii.gz: all voxels" in caplog.text


def test_an_image_is_known_by_its_content(run, folders, toy_dataset, tmp_path, caplog):
    images, prompts = folders
    shutil.copy(toy_dataset / "imagesTr" / "toy_0_0000.nii.gz", images / "d_0000.nii.gz")
    shutil.copy(run.folder / "prompts" / "toy_0.json", prompts / "d.json")
    record = read_json(predict(run, find_jobs(images, prompts), tmp_path / "out"))
    parts = {case["case"]: case["part"] for case in record["cases"]}
    assert parts.pop("d") in ("train", "val")
    assert set(parts.values()) == {None}
    caplog.clear()
    record = read_json(predict(run, find_jobs(images / "a_0000.nii.gz", prompts / "a.json"), tmp_path / "new"))
    assert "trained this run" not in caplog.text


def test_audits_say_what_became_of_every_prompt(run, folders, tmp_path):
    images, prompts = folders
    out = tmp_path / "out"
    predict(run, find_jobs(images, prompts), out)
    for name in CASES:
        given = read_prompts(prompts / f"{name}.json")
        audit = read_json(out / f"{name}.audit.json")
        assert audit["prompt_hash"] == given.key()
        assert audit["weights_sha256"] == run.record["weights_sha256"]
        assert [row["id"] for row in audit["prompts"]] == [point.id for point in given.points]
        assert {row["verdict"] for row in audit["prompts"]} == {"accepted", "rejected"}
        for row, point in zip(audit["prompts"], given.points, strict=True):
            assert np.allclose(row["ras_mm"], point.xyz_mm, atol=1e-3)
            assert row["reason"].startswith("saliency")
            accepted = row["saliency"]["own"] > 0.5
            assert accepted == (row["verdict"] == "accepted")
        again = read_prompts(out / f"{name}.audit.mrk.json")
        kept = [row["id"] for row in audit["prompts"] if row["verdict"] == "accepted"]
        assert [point.id for point in again.points] == kept, "rejected points are unselected"


@pytest.mark.parametrize("damage", ["truncated", "no prompts"])
def test_one_bad_case_stops_no_other(run, folders, tmp_path, damage):
    images, prompts = folders
    out = tmp_path / "out"
    if damage == "truncated":
        path = images / "b_0000.nii.gz"
        path.write_bytes(path.read_bytes()[:-200])
    else:
        (prompts / "b.json").unlink()
    with pytest.raises(BatchError, match="BATCH_FAILED") as error:
        predict(run, find_jobs(images, prompts), out)
    assert error.value.exit_code == 6
    assert "1 of 3" in str(error.value)
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]
    assert not list(out.glob("b.*"))
    lines = (out / "failures.jsonl").read_text().splitlines()
    assert len(lines) == 1
    failure = json.loads(lines[0])
    assert failure["case"] == "b"
    assert failure["code"] == ("IMG_GZIP_TRUNCATED" if damage == "truncated" else "PROMPT_CASE_MISSING")
    assert failure["exit_code"] == 4
    record = read_json(out / "run.json")
    assert [case["case"] for case in record["cases"]] == ["a", "c"]
    assert record["failures"] == [failure]
    assert leftovers(out) == []


def test_a_mended_batch_forgets_its_failures(run, folders, tmp_path):
    images, prompts = folders
    out, aside = tmp_path / "out", tmp_path / "aside.json"
    shutil.move(prompts / "c.json", aside)
    with pytest.raises(BatchError):
        predict(run, find_jobs(images, prompts), out)
    shutil.move(aside, prompts / "c.json")
    predict(run, find_jobs(images, prompts), out)
    assert not (out / "failures.jsonl").exists()
    assert read_json(out / "run.json")["failures"] == []


def test_a_single_bad_case_raises_its_own_error(run, folders, tmp_path):
    images, prompts = folders
    (images / "a_0000.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="IMG_EMPTY"):
        predict(run, find_jobs(images / "a_0000.nii.gz", prompts / "a.json"), tmp_path / "out")
    assert not (tmp_path / "out" / "a.nii.gz").exists()


def test_pairing_of_files(folders, tmp_path):
    images, prompts = folders
    with pytest.raises(InputError, match="FILE_MISSING"):
        find_jobs(tmp_path / "nothing.nii.gz", prompts)
    with pytest.raises(InputError, match="FILE_MISSING"):
        find_jobs(images, tmp_path / "nothing")
    with pytest.raises(InputError, match="PROMPT_CASE_UNKNOWN"):
        find_jobs(images, prompts / "a.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="DATA_EMPTY"):
        find_jobs(tmp_path / "empty", prompts)
    (prompts / "c.json").unlink()
    found = {job.name: job.prompts for job in find_jobs(images, prompts)}
    assert found == {"a": prompts / "a.json", "b": prompts / "b.json", "c": None}


def nifti_with(folder: Path, kind: str) -> Path:
    """A NIfTI whose header holds what only this format can say."""
    grid = GRIDS["oblique"]
    image = nib.Nifti1Image(make_volume(grid).array, grid.affine)  # pyright: ignore
    header = image.header
    if kind == "both forms":
        image.set_sform(grid.affine, code=2)
        image.set_qform(grid.affine, code=1)
    elif kind == "sform only":
        image.set_sform(grid.affine, code=4)
        image.set_qform(None, code=0)
    elif kind == "qform only":
        image.set_sform(None, code=0)
        image.set_qform(make_affine((0.8, 1.5, 4.0), degrees=31, flips=(-1, 1, 1)), code=1)
    elif kind == "big endian":
        image = nib.Nifti1Image(make_volume(grid).array, grid.affine, header.as_byteswapped(">"))  # pyright: ignore
    elif kind == "noisy spacing":
        header["pixdim"][4:] = [0.3, 0.1, 7, 9]
        header.set_xyzt_units("mm", "msec")
    path = folder / "case.nii.gz"
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)  # pyright: ignore
    return path


@pytest.mark.parametrize("kind", ["both forms", "sform only", "qform only", "big endian", "noisy spacing"])
def test_the_header_of_the_mask_is_the_inputs_bit_for_bit(run, tmp_path, kind):
    image = nifti_with(tmp_path / "in", kind)
    prompts = write_prompts(tmp_path / "case.json", some_prompts(read_grid(image)))
    predict(run, find_jobs(image, prompts), tmp_path / "out")
    before, after = nib.load(image), nib.load(tmp_path / "out" / "case.nii.gz")  # pyright: ignore
    assert after.header["datatype"] == 2, "uint8"  # pyright: ignore
    for field in GEOMETRY:
        a, b = before.header[field], after.header[field]  # pyright: ignore
        assert np.asarray(a).astype(b.dtype).tobytes() == np.asarray(b).tobytes(), field
    assert before.affine.tobytes() == after.affine.tobytes()  # pyright: ignore
    assert before.shape == after.shape  # pyright: ignore


@pytest.mark.parametrize("ending", ["nrrd", "mha"])
def test_nrrd_and_mha_give_a_nifti_on_the_same_grid(run, tmp_path, ending):
    sitk = pytest.importorskip("SimpleITK")
    grid = GRIDS["coronal"]
    image = sitk.GetImageFromArray(make_volume(grid).array.transpose(2, 1, 0))
    lps = np.diag([-1.0, -1.0, 1.0]) @ grid.affine[:3]
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(lps[:, 3].tolist())
    image.SetDirection((lps[:, :3] / np.array(grid.spacing_mm)).ravel().tolist())
    path = tmp_path / f"case.{ending}"
    sitk.WriteImage(image, str(path))
    prompts = write_prompts(tmp_path / "case.json", some_prompts(grid))
    predict(run, find_jobs(path, prompts), tmp_path / "out")
    found = read_grid(tmp_path / "out" / "case.nii.gz")
    assert grids_agree(found, grid)
    assert found.slice_axis == grid.slice_axis
    # SimpleITK itself sees mask and image at the same place in the patient
    mask = sitk.ReadImage(str(tmp_path / "out" / "case.nii.gz"))
    corner = (6, 3, 10)
    there = image.TransformIndexToPhysicalPoint(corner)
    assert np.allclose(mask.TransformIndexToPhysicalPoint(corner), there, atol=1e-3)


@pytest.mark.parametrize("colour", [False, True])
def test_a_picture_is_a_volume_of_one_slice(run, tmp_path, caplog, colour):
    from PIL import Image

    grid = Grid((26, 20, 1), np.eye(4), 2)
    pixels = make_volume(grid).array[:, :, 0].T.clip(0, 255).astype(np.uint8)  # (20, 26): rows, columns
    Image.fromarray(np.stack([pixels] * 3, -1) if colour else pixels).save(tmp_path / "photo.png")
    prompts = Prompts((click("p", (13, 10), 0, grid), click("q", (2, 2), 0, grid)))
    path = write_prompts(tmp_path / "photo.json", prompts, frame="ijk", grid=read_grid(tmp_path / "photo.png"))
    predict(run, find_jobs(tmp_path / "photo.png", path), tmp_path / "out")
    assert ("1 of 1 images are no grey images" in caplog.text) == colour
    mask, found = read_label_map(tmp_path / "out" / "photo.png")
    assert found.shape == (26, 20, 1)
    assert set(np.unique(mask)) == {0, 255}  # what viewers show as black and white
    rows = np.argwhere(mask[:, :, 0])
    assert len(rows) > 10
    assert np.abs(rows.mean(axis=0) - (13, 10)).max() < 2.5


def test_the_slice_axis_can_be_chosen(run, tmp_path):
    grid = GRIDS["oblique"]
    write_volume(tmp_path / "case.nii.gz", make_volume(grid).array, grid)
    prompts = write_prompts(tmp_path / "case.json", some_prompts(grid))
    jobs = find_jobs(tmp_path / "case.nii.gz", prompts)
    predict(run, jobs, tmp_path / "out", PredictOptions(slice_axis=0))
    (case,) = read_json(tmp_path / "out" / "run.json")["cases"]
    assert case["slice_axis"] == 0
    audit = read_json(tmp_path / "out" / "case.audit.json")
    assert audit["counts"]["slices"] == grid.shape[0]


def test_prompts_outside_can_be_dropped_and_are_audited(run, tmp_path):
    grid = GRIDS["plain"]
    write_volume(tmp_path / "case.nii.gz", make_volume(grid).array, grid)
    a, b, c = voxel_to_ras(np.array([[4.0, 5.0, 40.0]]), grid)[0].tolist()
    points = some_prompts(grid).points
    stray = type(points[0])("stray", (a, b, c))
    path = write_prompts(tmp_path / "case.json", Prompts((*points, stray)))
    jobs = find_jobs(tmp_path / "case.nii.gz", path)
    with pytest.raises(InputError, match="PROMPT_OUTSIDE"):
        predict(run, jobs, tmp_path / "out")
    predict(run, jobs, tmp_path / "out", PredictOptions(outside="drop"))
    rows = {row["id"]: row for row in read_json(tmp_path / "out" / "case.audit.json")["prompts"]}
    assert rows["stray"]["verdict"] == "ignored"
    assert rows["stray"]["slice"] is None
    assert read_volume(tmp_path / "out" / "case.nii.gz").grid.shape == grid.shape
