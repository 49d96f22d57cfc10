"""The environment of the processes that tests start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    """The environment of a child process that imports the same package."""
    given = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    paths = [str(TESTS), *(path for path in sys.path if path)]
    return {**given, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **more}
