"""Programs of others: their output is kept, their failures are typed, and they end when we do."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from steadysam.errors import ExternalError, ResourceError
from steadysam.external.processes import run_logged, tail


def python(code: str, folder: Path, **variables: str):
    return run_logged([sys.executable, "-c", code], folder / "logs" / "it.log", {**os.environ, **variables})


def test_output_goes_to_the_log_with_the_command_before_it(tmp_path):
    done = python("import os, sys; print(os.environ['WORD']); print('oh', file=sys.stderr)", tmp_path, WORD="seven")
    lines = done.log.read_text("utf-8").splitlines()
    assert lines[0].startswith(f"$ {sys.executable} -c")
    assert sorted(lines[1:]) == ["oh", "seven"]
    assert done.record() == {
        "command": list(done.command),
        "seconds": pytest.approx(done.seconds, abs=1e-3),
        "log": "it.log",
    }
    python("print('again')", tmp_path)
    assert "seven" in done.log.read_text("utf-8")  # a log is added to, not replaced


@pytest.mark.parametrize(
    "code, kind, name",
    [
        ("print('no such thing'); raise SystemExit(3)", ExternalError, "EXTERNAL_FAILED"),
        ("raise MemoryError", ResourceError, "EXTERNAL_MEMORY"),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate')", ResourceError, "EXTERNAL_MEMORY"),
        ("raise OSError(28, 'No space left on device')", ResourceError, "EXTERNAL_DISK"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ResourceError, "EXTERNAL_MEMORY"),
    ],
)
def test_a_failure_is_typed_and_shows_the_end_of_the_log(tmp_path, code, kind, name):
    with pytest.raises(kind) as caught:
        python(code, tmp_path)
    assert caught.value.code == name
    assert caught.value.file == str(tmp_path / "logs" / "it.log")
    if name == "EXTERNAL_FAILED":
        assert "no such thing" in str(caught.value)
        assert "exit code 3" in str(caught.value)
        assert caught.value.exit_code == 12


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(ExternalError) as caught:
        run_logged([tmp_path / "nothing"], tmp_path / "it.log", {})
    assert caught.value.code == "EXTERNAL_START"


def test_the_tail_is_short(tmp_path):
    log = tmp_path / "long.log"
    log.write_text("".join(f"line {n}\n\n" for n in range(20000)), "utf-8")
    assert tail(log, 2) == "line 19998\nline 19999"
    log.write_text("10 %\r20 %\r" + "x" * 1000, "utf-8")  # a progress bar writes one line over and over
    assert tail(log, 2) == "20 %\n" + "x" * 300


def test_it_ends_with_its_workers_when_we_are_stopped(tmp_path, monkeypatch):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    started: list[int] = []

    def interrupted(self, timeout=None):
        if timeout is None:
            time.sleep(0.5)
            started.append(self.pid)
            raise KeyboardInterrupt
        return original(self, timeout)

    import subprocess

    original = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python(code, tmp_path)
    for _ in range(50):
        try:
            os.killpg(started[0], 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.killpg(started[0], 0)
