"""The rows that all benchmarks read: known values, in a file that can be mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

BATCH = 256
_PART = 4096
_BATCHES = 512


def mapped_rows(path: Path, rows: int, width: int) -> torch.Tensor:
    """A file of random float32 rows, mapped as one tensor."""
    mapped = torch.from_file(str(path), shared=True, size=rows * width, dtype=torch.float32).view(rows, width)
    generator = torch.Generator().manual_seed(1)
    for start in range(0, rows, _PART):
        part = mapped[start : start + _PART]
        part.copy_(torch.randn(part.shape, generator=generator))
    return mapped


def parts(rows: int, size: int = _PART) -> Iterator[tuple[int, int]]:
    """The ranges of rows that are put at once."""
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def batches(rows: int, size: int = BATCH, count: int = _BATCHES) -> list[torch.Tensor]:
    """Batches of random row numbers. No number occurs twice in a batch, unless there are too few rows."""
    generator = torch.Generator().manual_seed(2)
    if rows < size:
        return [torch.randint(rows, (size,), generator=generator) for _ in range(count)]
    return [_distinct(rows, size, generator) for _ in range(count)]


def _distinct(rows: int, size: int, generator: torch.Generator) -> torch.Tensor:
    found = torch.randint(rows, (2 * size,), generator=generator).unique()
    if len(found) < size:
        found = torch.randperm(rows, generator=generator)
    return found[torch.randperm(len(found), generator=generator)[:size]].contiguous()


def check(name: str, read: Callable[[int], Any], expected: Callable[[int], torch.Tensor], count: int = 3) -> None:
    """Stops the benchmark if a contender returns other rows than the expected ones."""
    for number in range(count):
        found, wanted = read(number), expected(number)
        if not torch.is_tensor(found):
            raise SystemExit(f"{name} returned a {type(found).__name__}, not a tensor")
        if found.shape != wanted.shape or found.dtype != wanted.dtype or not torch.equal(found, wanted):
            raise SystemExit(f"{name} returned other rows than the expected ones in batch {number}")
