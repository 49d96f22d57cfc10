"""The device of the checks in this folder: a GPU if there is one, else the CPU."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def device() -> Any:
    torch = pytest.importorskip("torch")
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
