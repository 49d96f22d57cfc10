"""Cached modules whose inputs and outputs are on a GPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gpu_support as support
import torch
from gpu_support import Backbone, Exact, Kinds, assert_bits, assert_counts, images, on_device

import tensorcask as tc


def test_by_ids(device: Any, tmp_path: Path) -> None:
    backbone = Backbone().to(device)
    cached = tc.cache(backbone, tmp_path, module_id="ids")
    x, ids = images(12, device), torch.arange(12)
    first = cached(x, ids=ids)
    second = cached(x, ids=ids)
    with torch.no_grad():
        direct = backbone(x)
    assert on_device(first, device) and on_device(second, device)
    assert_bits(first, second)
    torch.testing.assert_close(first, direct)
    # Some are found, in another order, and ids may be on the GPU.
    order = [11, 30, 2, 31]
    mixed = cached(torch.stack([x[11], x[0], x[2], x[1]]), ids=torch.tensor(order).to(device))
    assert_bits(mixed[[0, 2]], first[[11, 2]])
    torch.testing.assert_close(mixed[[1, 3]], first[[0, 1]], rtol=1e-4, atol=1e-5)
    assert_counts(cached, 14, 14)
    cached.close()


def test_by_content_on_both_devices(device: Any, tmp_path: Path) -> None:
    cached = tc.cache(Exact(), tmp_path, module_id="content")
    x = images(8, "cpu")
    first = cached(x.to(device))
    assert on_device(first, device)
    again = cached(x.to(device).flip(0))
    assert_bits(again.flip(0), first)
    # The same content on the CPU is the same sample.
    on_cpu = cached(x)
    assert on_cpu.device.type == "cpu"
    assert_bits(on_cpu, first)
    assert_counts(cached, 16, 8)
    cached.close()


def test_a_new_handle_reads_from_disk(device: Any, tmp_path: Path) -> None:
    x = images(20, device)
    with tc.cache(Backbone().to(device), tmp_path, module_id="disk") as cached:
        first = cached(x, ids=list(range(20)))
    with tc.cache(Backbone().to(device), tmp_path, module_id="disk") as cached:
        assert_bits(cached(x, ids=list(range(20))), first)
        assert_counts(cached, 20, 0)
    # Weights are part of the identity, wherever they are.
    with tc.cache(Backbone(), tmp_path, module_id="disk") as cached:
        assert_bits(cached(x.cpu(), ids=list(range(20))), first)
        assert_counts(cached, 20, 0)


def test_map_location(device: Any, tmp_path: Path) -> None:
    x, ids = images(6, device), list(range(6))
    backbone = Backbone().to(device)
    to_cpu = tc.cache(backbone, tmp_path, module_id="located", map_location="cpu")
    first = to_cpu(x, ids=ids)
    assert first.device.type == "cpu" and to_cpu(x, ids=ids).device.type == "cpu"
    to_gpu = tc.cache(backbone, tmp_path, module_id="located", map_location=str(device))
    found = to_gpu(x.cpu(), ids=ids)
    assert on_device(found, device)
    assert_bits(found, first)
    assert_counts(to_gpu, 6, 0)
    lazily = to_gpu.lazy(ids, lambda positions: x[positions], device=device)
    assert on_device(lazily, device)
    assert_bits(lazily, first)
    to_cpu.close()
    to_gpu.close()


def test_pinned_and_non_blocking(device: Any, tmp_path: Path) -> None:
    support.needs_cuda(device)
    x = images(64, device)
    backbone = Backbone().to(device)
    pinned = tc.cache(backbone, tmp_path, module_id="pinned", map_location="cpu", pinned=True)
    first = pinned(x, ids=list(range(64)))
    found = pinned(x, ids=list(range(64)))
    assert found.is_pinned(), "results on the CPU are in page-locked memory"
    assert_bits(found, first)
    quick = tc.cache(backbone, tmp_path, module_id="pinned", map_location=str(device), pinned=True)
    for start in range(0, 64, 8):
        ids = list(range(start, start + 8))
        rows = quick(x[start : start + 8], ids=ids)
        assert on_device(rows, device)
        # A kernel that follows on the current stream sees the rows.
        assert_bits(rows * 2, first[start : start + 8] * 2)
    assert_counts(quick, 64, 0)
    pinned.close()
    quick.close()


def test_dtypes(device: Any, tmp_path: Path) -> None:
    x = torch.randn(10, 7, generator=torch.Generator().manual_seed(3)).to(device)
    cached = tc.cache(Kinds(), tmp_path, module_id="dtypes")
    direct, first, second = Kinds()(x), cached(x), cached(x)
    assert on_device(first, device) and on_device(second, device)
    assert_bits(first, direct)
    assert_bits(second, direct)
    assert_counts(cached, 10, 10)
    cached.close()


def test_outputs_in_gpu_memory(device: Any, tmp_path: Path) -> None:
    backbone = Backbone().to(device)
    cached = tc.cache(backbone, tmp_path, module_id="held", memory_device=str(device), memory_bytes=1 << 20)
    x, ids = images(16, device), list(range(16))
    first = cached(x, ids=ids)
    for _ in range(3):
        assert_bits(cached(x, ids=ids), first)
    rows, held_bytes = cached.held()
    assert rows == 16 and held_bytes >= first.numel() * 4, (rows, held_bytes)
    second = cached(x, ids=ids)
    second.add_(1)
    assert_bits(cached(x, ids=ids), first)
    cached.close()


def test_weights_that_change_on_the_gpu(device: Any, tmp_path: Path) -> None:
    backbone = Backbone().to(device)
    cached = tc.cache(backbone, tmp_path, module_id="weights")
    x, ids = images(4, device), list(range(4))
    first = cached(x, ids=ids)
    backbone.first.bias.add_(0.5)
    second = cached(x, ids=ids)
    assert not torch.equal(first, second)
    backbone.first.bias.sub_(0.5)
    backbone.load_state_dict(Backbone(seed=0).state_dict())
    assert_bits(cached(x, ids=ids), first)
    assert_counts(cached, 4, 8)
    cached.close()


def test_autocast(device: Any, tmp_path: Path) -> None:
    cached = tc.cache(Backbone().to(device), tmp_path, module_id="autocast")
    x, ids = images(5, device), list(range(5))
    full = cached(x, ids=ids)
    with torch.autocast(device.type, torch.bfloat16):
        half = cached(x, ids=ids)
        assert_bits(cached(x, ids=ids), half)
    assert full.dtype == torch.float32
    assert not torch.equal(full.float(), half.float()), "autocast is part of the key"
    assert_bits(cached(x, ids=ids), full)
    assert_counts(cached, 10, 10)
    cached.close()


def test_training_a_head(device: Any, tmp_path: Path) -> None:
    cached = tc.cache(Backbone().to(device), tmp_path, module_id="head")
    model = torch.nn.Sequential(cached, torch.nn.Linear(32, 2)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = images(32, device)
    labels = (torch.arange(32) % 2).to(device)
    losses = []
    for _epoch in range(5):
        model.train()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert_counts(cached, 4 * 32, 32)
    cached.close()


def test_callers_on_both_devices_share_one_cache(device: Any, tmp_path: Path) -> None:
    on_gpu = tc.cache(Exact(), tmp_path, module_id="shared")
    on_cpu = tc.cache(Exact(), tmp_path, module_id="shared")
    x = images(64, "cpu")
    expected = Exact()(x)
    failures: list[BaseException] = []

    def work(cached: Any, where: Any, offset: int) -> None:
        try:
            for step in range(16):
                at = torch.arange(8).add(4 * step + offset) % 64
                rows = cached(x[at].to(where), ids=at)
                assert rows.device == torch.device(where)
                assert_bits(rows, expected[at])
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            failures.append(error)

    callers = [(on_gpu, device), (on_cpu, torch.device("cpu")), (on_gpu, "cpu"), (on_cpu, device)]
    threads = [
        threading.Thread(target=work, args=(cached, where, offset)) for offset, (cached, where) in enumerate(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    misses = on_gpu.stats()["misses"] + on_cpu.stats()["misses"]
    assert 64 <= misses <= 80, misses
    on_gpu.close()
    on_cpu.close()
