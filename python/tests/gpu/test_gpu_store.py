"""Stores whose rows are read to a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpu_support as support
import torch
from gpu_support import Kinds, assert_bits, busy, on_device

import tensorcask as tc

DataLoader = torch.utils.data.DataLoader


def rows_of(count: int, width: int = 64) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(5))


def test_rows_are_read_to_the_device(device: Any, tmp_path: Path) -> None:
    rows = rows_of(100)
    with tc.open(tmp_path, "rows", device=str(device)) as store:
        store.put(range(100), rows.to(device))
        taken = store.take([5, 99, 0])
        assert on_device(taken, device)
        assert_bits(taken, rows[[5, 99, 0]])
        found_rows, found = store.get(torch.tensor([1, 1000]).to(device))
        assert on_device(found_rows, device) and found.tolist() == [True, False]
        assert_bits(found_rows[0], rows[1])
        assert on_device(store[7], device)
        assert_bits(store[7], rows[7])
        out = torch.zeros(3, 64, device=device)
        store.take([3, 2, 1], out=out)
        assert_bits(out, rows[[3, 2, 1]])


def test_trees_of_all_dtypes(device: Any, tmp_path: Path) -> None:
    tree = Kinds()(rows_of(20, 6).to(device))
    with tc.open(tmp_path, "trees", device=str(device)) as store:
        store.put(range(20), tree)
        found = store.take(range(20))
        assert on_device(found, device)
        assert_bits(found, tree)


def test_reads_beside_kernels(device: Any, tmp_path: Path) -> None:
    rows = rows_of(512)
    with tc.open(tmp_path, "beside", device=str(device)) as store:
        store.put(range(512), rows)
        expected = rows.to(device)
        for start in range(0, 512, 32):
            running = busy(device, 5)
            taken = store.take(range(start, start + 32)) + 1
            assert_bits(taken, expected[start : start + 32] + 1)
            del running


def test_loader_with_pinned_memory(device: Any, tmp_path: Path) -> None:
    rows = rows_of(128)
    with tc.open(tmp_path, "loader") as store:
        store.put(range(128), rows)
        store.flush()
        dataset = tc.data.StoreDataset(store, range(128), return_keys=True)
        loader = DataLoader(
            dataset, batch_size=32, shuffle=True, num_workers=2, pin_memory=device.type == "cuda",
            persistent_workers=True,
        )  # fmt: skip
        for _epoch in range(2):
            seen = 0
            for batch, keys in loader:
                assert batch.is_pinned() == (device.type == "cuda")
                assert_bits(batch.to(device, non_blocking=True), rows[keys])
                seen += len(keys)
            assert seen == 128
        del loader


def test_batches_are_copied_beside_kernels(device: Any, tmp_path: Path) -> None:
    rows = rows_of(1024, 256)
    with tc.open(tmp_path, "batches") as store:
        store.put(range(1024), rows)
        batches = tc.data.batches(store, range(1024), 64, shuffle=3, device=device, return_keys=True, prefetch=3)
        expected = rows.to(device)
        for _epoch in range(3):
            total = torch.zeros(256, device=device)
            for batch, keys in batches:
                assert on_device(batch, device) and on_device(keys, device)
                busy(device, 3)
                assert torch.equal(batch, expected[keys])
                total += batch.sum(0)
            torch.testing.assert_close(total, expected.sum(0), rtol=1e-3, atol=1e-2)


def test_the_operator_gathers_to_the_device_of_the_keys(device: Any, tmp_path: Path) -> None:
    rows = rows_of(50, 8)
    with tc.open(tmp_path, "operator") as store:
        store.put(range(50), rows)
        gather = tc.ops.register(store, "gpu-check")
        keys = torch.tensor([[4, 2], [0, 49]], device=device)
        found = gather(keys)
        assert on_device(found, device)
        assert_bits(found, rows[keys.cpu()])

        class Head(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.gather = gather
                self.linear = torch.nn.Linear(8, 3)

            def forward(self, keys: torch.Tensor) -> torch.Tensor:
                return self.linear(self.gather(keys)).relu()

        head = Head().to(device)
        backend = "inductor" if device.type == "cuda" else "aot_eager"
        compiled = torch.compile(head, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(keys), head(keys), rtol=1e-3, atol=1e-4)
        compiled(keys).sum().backward()
        tc.ops.unregister("gpu-check")


def test_rows_are_read_into_pinned_memory_of_the_caller(device: Any, tmp_path: Path) -> None:
    support.needs_cuda(device)
    with tc.open(tmp_path, "pinned") as store:
        store.put(range(4), rows_of(4))
        out = torch.empty(4, 64, pin_memory=True)
        store.take(range(4), out=out)
        assert_bits(out.to(device, non_blocking=True), rows_of(4))
