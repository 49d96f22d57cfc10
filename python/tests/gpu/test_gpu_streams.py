"""Hits and misses beside kernels on other streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu_support as support
import torch
from gpu_support import Backbone, Exact, assert_bits, assert_counts, busy, images

import tensorcask as tc


def test_hits_while_a_kernel_runs_on_another_stream(device: Any, tmp_path: Path) -> None:
    support.needs_cuda(device)
    cached = tc.cache(
        Exact(), tmp_path, module_id="beside", pinned=True, map_location=str(device)
    )
    x = images(256, device)
    expected = Exact()(x)
    cached(x, ids=list(range(256)))
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        running = busy(device, 400)
    found = []
    for start in range(0, 256, 16):
        # Memory of former results is reused by later copies.
        rows = cached(x[start : start + 16], ids=list(range(start, start + 16)))
        found.append(rows + 1)
        del rows
    assert_bits(torch.cat(found), expected + 1)
    torch.cuda.synchronize()
    assert torch.isfinite(running).all()
    cached.close()


def test_hits_on_a_stream_of_the_caller(device: Any, tmp_path: Path) -> None:
    support.needs_cuda(device)
    cached = tc.cache(Exact(), tmp_path, module_id="on-stream", pinned=True, map_location=str(device))
    x = images(64, device)
    expected = Exact()(x)
    cached(x, ids=list(range(64)))
    mine = torch.cuda.Stream()
    for _round in range(20):
        with torch.cuda.stream(mine):
            busy(device, 10)
            rows = cached(x, ids=list(range(64)))
            doubled = rows * 2
        torch.cuda.current_stream().wait_stream(mine)
        doubled.record_stream(torch.cuda.current_stream())
        assert_bits(doubled, expected * 2)
    cached.close()


def test_misses_see_inputs_of_the_current_stream(device: Any, tmp_path: Path) -> None:
    support.needs_cuda(device)
    cached = tc.cache(Exact(), tmp_path, module_id="inputs")
    base = images(16, device)
    torch.cuda.synchronize()
    mine = torch.cuda.Stream()
    for step in range(10):
        with torch.cuda.stream(mine):
            # The input is not ready when the call is made.
            late = busy(device, 100).sum() * 0 + base + step
            by_content = cached(late)
        mine.synchronize()
        assert_bits(by_content, Exact()(base + step))
    assert_counts(cached, 0, 160)
    # What was kept are the values that were computed, not those that were there before.
    for step in range(10):
        assert_bits(cached(base + step), Exact()(base + step))
    assert_counts(cached, 160, 160)
    cached.close()


def test_results_may_be_written_to(device: Any, tmp_path: Path) -> None:
    cached = tc.cache(Backbone().to(device), tmp_path, module_id="writes")
    x, ids = images(8, device), list(range(8))
    first = cached(x, ids=ids)
    kept = first.clone()
    first.zero_()
    for _ in range(2):
        rows = cached(x, ids=ids)
        assert_bits(rows, kept)
        rows.fill_(7)
    cached.close()
