"""The command line tool of the package: its exit codes, its streams and its signals."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tensorcask as tc

TOOL = [sys.executable, "-m", "tensorcask"]


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs the tool and returns its exit code and output."""
    return subprocess.run([*TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of 1000 rows of 400 bytes."""
    with tc.open(tmp_path, "m", format="bytes") as store:
        store.put([f"key-{row:04}" for row in range(1000)], memoryview(bytes(400_000)).cast("B", (1000, 400)))
    return tmp_path / "m"


def test_version_and_help_name_the_tool() -> None:
    assert run("--version").stdout == f"tensorcask {tc.__version__}\n"
    said = run("stats", "--help")
    assert said.returncode == 0 and "Usage: tensorcask stats" in said.stdout


def test_exit_codes(store: Path) -> None:
    assert run("get", store, "key-0001").returncode == 0
    assert run("get", store, "absent").returncode == 1
    assert run("no-such-command").returncode == 3
    wrong = run("--format", "json", "stats", "--no-such-option")
    assert wrong.returncode == 3 and "--no-such-option" in json.loads(wrong.stderr)["error"]
    segment = next((store / "segments").glob("*.arrow"))
    damaged = bytearray(segment.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    segment.write_bytes(damaged)
    assert run("verify", store).returncode == 2


def test_output_is_that_of_the_store(store: Path) -> None:
    stats = json.loads(run("--format", "json", "stats", store).stdout)
    assert stats["keys"] == 1000
    assert run("ls", store).stdout.count("key-") == 1000


def test_arguments_that_are_not_unicode_reach_the_tool(store: Path) -> None:
    folder = os.fsencode(store.parent) + b"/m-\xff"
    os.mkdir(folder)
    os.rename(store, folder + b"/numbers")
    said = subprocess.run([*TOOL, "--format", "json", "stats", folder + b"/numbers"], capture_output=True, timeout=60)
    assert said.returncode == 0 and json.loads(said.stdout)["keys"] == 1000


def test_a_closed_pipe_is_no_failure(store: Path) -> None:
    piped = f'"{sys.executable}" -m tensorcask ls "{store}" | head -1; echo "${{PIPESTATUS[0]}}"'
    said = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines()[-1] == "0" and said.stderr == ""


def test_output_never_goes_to_a_file_of_the_store(store: Path) -> None:
    before = {file: file.read_bytes() for file in sorted(store.rglob("*")) if file.is_file()}
    closed = f'"{sys.executable}" -m tensorcask ls "{store}" >&- 2>&- <&-'
    assert subprocess.run(["bash", "-c", closed], timeout=60).returncode == 0
    assert {file: file.read_bytes() for file in before} == before


def test_a_file_size_limit_is_reported(store: Path, tmp_path: Path) -> None:
    limited = f'ulimit -f 1; "{sys.executable}" -B -m tensorcask export "{store}" "{tmp_path}/rows.npy"'
    said = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=60)
    assert said.returncode == 4, said
    assert "File too large" in said.stderr and not (tmp_path / "rows.npy").exists()


def test_an_interrupt_ends_the_tool(store: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    # Processes that a script has in the background ignore interrupts, and so would those that they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([*TOOL, "export", str(store), str(pipe), "--to", "arrows"], stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        # The rows do not fit into the pipe: the tool waits in native code until somebody reads them.
        assert select.select([reader], [], [], 60)[0]
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT
        assert process.stderr is not None and process.stderr.read() == b""
    os.close(reader)
