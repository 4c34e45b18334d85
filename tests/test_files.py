"""Files appear whole or not at all; content decides names."""

import errno
import os

import numpy as np
import pytest

from steadysam import files
from steadysam.errors import FileSystemError, InputError, ResourceError
from steadysam.files import (
    atomic_write,
    content_key,
    new_folder,
    read_json,
    sweep_temporaries,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")

    def broken(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceError, match="FS_FULL") as error:
        atomic_write(path, broken)
    assert error.value.exit_code == 7
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_fault_at_any_system_call_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = write_text(tmp_path / "a.txt", "old")

    def fault(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, call, fault)
    with pytest.raises(FileSystemError, match="FS_WRITE"):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_parent_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileSystemError, match="FS_WRITE"):
        write_text(tmp_path / "file" / "a.txt", "new")


def test_a_really_full_disk(tmp_path):
    """A file size limit is the nearest thing to a full disk that needs no rights."""
    resource = pytest.importorskip("resource")
    import signal

    old, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(ResourceError, match="FS_FULL"):
            write_text(tmp_path / "big.txt", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def half():
        with new_folder(tmp_path / "set") as part:
            write_text(part / "a", "1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "set") as part:
        write_text(part / "a", "1")
    assert (tmp_path / "set" / "a").read_text() == "1"
    with pytest.raises(FileSystemError, match="FS_EXISTS"), new_folder(tmp_path / "set"):
        pass


def test_leftovers_of_dead_processes_are_swept(tmp_path):
    (tmp_path / ".tmp-999999999-a.nii.gz").write_text("half")
    (tmp_path / ".tmp-999999999-folder").mkdir()
    (tmp_path / f".tmp-{os.getppid()}-b").write_text("another process is at work")
    (tmp_path / "whole").write_text("x")
    assert sweep_temporaries(tmp_path) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([f".tmp-{os.getppid()}-b", "whole"])


@pytest.mark.parametrize(
    "text, code",
    [
        ('{"a": 1, "a": 2}', "JSON_DUPLICATE_KEY"),
        ('{"a": NaN}', "JSON_NONFINITE"),
        ('{"a": 1e999}', "JSON_NONFINITE"),
        ('{"a": ', "JSON_SYNTAX"),
        ("[" * 100_000, "JSON_SYNTAX"),
    ],
)
def test_json_is_read_strictly(tmp_path, text, code):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=code) as error:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(error.value)


def test_json_round_trip_with_bom(tmp_path):
    path = write_json(tmp_path / "a.json", {"x": [1, 2.5, "é"]})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_json(path) == {"x": [1, 2.5, "é"]}


def test_missing_json(tmp_path):
    with pytest.raises(InputError, match="FILE_MISSING"):
        read_json(tmp_path / "no.json")


def test_keys_tell_shape_type_and_order_apart():
    flat = np.arange(24, dtype=np.int16)
    keys = {
        content_key(flat),
        content_key(flat.reshape(6, 4)),
        content_key(flat.reshape(4, 6)),
        content_key(flat.view(np.uint16)),
        content_key("a", "bc"),
        content_key("ab", "c"),
        content_key(["a", "bc"]),
        content_key(b"ab", b"c"),
        content_key(b"a", b"bc"),
    }
    assert len(keys) == 9
    assert content_key(np.asfortranarray(flat.reshape(6, 4))) == content_key(flat.reshape(6, 4))
