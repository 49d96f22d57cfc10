"""Modules and backends for the tests of `tensorcask.compat.torchcachex`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tensorcask.compat.torchcachex import ArrowIPCCacheBackend


class Doubler(torch.nn.Module):
    """Doubles its input, and counts the samples that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0

    def forward(self, x: Any, **_more: Any) -> Any:
        x = x["input"] if isinstance(x, dict) else x
        self.samples += x.shape[0]
        return x * 2


class Returns(torch.nn.Module):
    """Returns what a function makes of the input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make, self.calls = make, 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.make(x)


@pytest.fixture
def backend(tmp_path: Path) -> ArrowIPCCacheBackend:
    return ArrowIPCCacheBackend(str(tmp_path), "module", async_write=False)


def ids(*numbers: int) -> list[str]:
    return [f"sample_{number}" for number in numbers]


def again(backend: ArrowIPCCacheBackend, **options: Any) -> ArrowIPCCacheBackend:
    """Another backend of the same folder, which has nothing in memory."""
    backend.flush()
    root = str(backend.cache_dir).removesuffix(backend.module_id)
    return ArrowIPCCacheBackend(root, backend.module_id, **options)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert found == expected
