"""One process at a time in a folder of outputs: refused with who it is, or waited for; a killed one leaves no lock."""

import json
import os
import threading

import pytest

from steadysam.errors import FileSystemError, LockedError
from steadysam.files import write_text
from steadysam.locks import HOLDER, LOCK, alone_in, is_lock
from toys import Holder, leftovers, steadysam


@pytest.fixture
def other(tmp_path):
    found = Holder(tmp_path / "out")
    yield found
    found.kill()


def test_the_second_is_told_who_is_in(other, tmp_path):
    with (
        pytest.raises(LockedError, match=r"FS_LOCKED.* 20\d\d-\d\d-\d\dT.*\+00:00") as error,
        alone_in(tmp_path / "out"),
    ):
        pytest.fail("both are in")
    assert error.value.exit_code == 9
    assert f"process {other.process.pid} on {os.uname().nodename}" in str(error.value)


def test_whoever_waits_comes_in_after(other, tmp_path, caplog):
    caplog.set_level("INFO", "steadysam")
    timer = threading.Timer(0.5, other.leave)
    timer.start()
    with alone_in(tmp_path / "out", wait=True):
        timer.join()
        assert other.process.returncode == 0
        assert json.loads((tmp_path / "out" / HOLDER).read_text("utf-8"))["pid"] == os.getpid()
        with pytest.raises(LockedError), alone_in(tmp_path / "out"):  # it is the lock that everybody sees
            pytest.fail("both are in")
    assert f"waiting for process {other.process.pid}" in caplog.text


def test_a_killed_process_leaves_no_lock(other, tmp_path):
    other.kill()
    assert (tmp_path / "out" / HOLDER).exists()  # what it said of itself is in nobody's way
    with alone_in(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_holder_that_cannot_be_read_is_no_other_error(other, tmp_path):
    for content in ("{", "[]", "{}"):
        write_text(tmp_path / "out" / HOLDER, content)
        with pytest.raises(LockedError, match="has not said who it is"), alone_in(tmp_path / "out"):
            pytest.fail("both are in")


def test_what_is_left_is_what_was_written(tmp_path):
    with alone_in(tmp_path / "nothing"):
        assert {path.name for path in (tmp_path / "nothing").iterdir()} == {LOCK, HOLDER}
        assert all(is_lock(path) for path in (tmp_path / "nothing").iterdir())
    (tmp_path / "old").mkdir()
    with alone_in(tmp_path / "old"):
        pass
    with alone_in(tmp_path / "some"):
        write_text(tmp_path / "some" / "file", "x")
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["old", "some", "some/file"]


def test_where_no_folder_can_be(tmp_path):
    write_text(tmp_path / "file", "x")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(FileSystemError, match="FS_WRITE"), alone_in(folder):
            pytest.fail("there is no such folder")


def test_the_second_training_in_one_folder_is_refused_and_changes_nothing(toy_dataset, tmp_path):
    folder, other = tmp_path / "run", Holder(tmp_path / "run")
    words = ["train", toy_dataset, "--label", "blob", "--method", "unet", "--size", 32, "-o", folder]
    words += ["--set", "method.tuning.epochs=1", "--set", "compute.cache=off", "--continue"]
    assert steadysam(*words) == 9
    assert all(is_lock(path) for path in folder.iterdir())
    other.leave()
    assert steadysam(*words) == 0
    assert leftovers(folder) == []
    assert not any(is_lock(path) for path in folder.iterdir())
