"""Runs functions ``test_*`` that take ``device`` and ``tmp_path``, as pytest would."""

from __future__ import annotations

import importlib
import inspect
import signal
import tempfile
import time
import traceback
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "gpu"
# The most telling checks come first, and those that compile last.
ORDER = ("test_gpu_cached", "test_gpu_store", "test_gpu_streams", "test_gpu_sentences", "test_gpu_compile")
LIMIT_S = 90


def functions() -> Iterator[tuple[str, Callable[..., None]]]:
    """All checks, by the order of their files."""
    names = [path.stem for path in FOLDER.glob("test_*.py")]
    for name in sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        module = importlib.import_module(name)
        for check, function in list(vars(module).items()):
            if check.startswith("test_") and inspect.isfunction(function) and function.__module__ == name:
                yield f"{name}::{check}", function


def run(device: Any, write: Callable[[dict[str, Any]], None], left_s: Callable[[], float]) -> None:
    """Runs all checks, as long as there is time."""
    for name, function in functions():
        if left_s() < 5:
            write({"kind": "check", "name": name, "result": "failed", "why": "no time was left"})
            continue
        begin_s = time.monotonic()
        result, why = _one(device, function)
        line = {"kind": "check", "name": name, "result": result, "seconds": round(time.monotonic() - begin_s, 2)}
        write({**line, "why": why} if why else line)


def _one(device: Any, function: Callable[..., None]) -> tuple[str, str]:
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT_S)
    try:
        with tempfile.TemporaryDirectory() as folder:
            given = {"device": device, "tmp_path": Path(folder)}
            function(**{name: given[name] for name in inspect.signature(function).parameters})
    except unittest.SkipTest as skipped:
        return "skipped", str(skipped)
    except BaseException:  # noqa: BLE001 - the other checks have to run
        return "failed", traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)
    return "passed", ""


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"the check took more than {LIMIT_S} s")
