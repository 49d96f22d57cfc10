"""Fixtures of all tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child_environment import environment

torch = pytest.importorskip("torch")
torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """An empty folder for outputs."""
    return str(tmp_path / "cache")


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., Any]:
    """Runs a program in a new process, and returns what it printed in its last line, as JSON."""

    def run(code: str, name: str = "program.py", **env: str) -> Any:
        (tmp_path / name).write_text(code)
        ran = subprocess.run(
            [sys.executable, name], cwd=tmp_path, env=environment(**env), capture_output=True, text=True, timeout=120
        )
        assert ran.returncode == 0, ran.stderr[-4000:]
        return json.loads(ran.stdout.strip().splitlines()[-1])

    return run
