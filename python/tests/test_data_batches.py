"""``tensorcask.data.batches``."""

from __future__ import annotations

import sys
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tensorcask as tc  # noqa: E402

ROWS = torch.rand(50, 4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    with tc.open(tmp_path, "features") as store:
        store.put(range(50), ROWS)
        yield store


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tensorcask-batches"]


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_batches_in_order(store: Any, prefetch: int) -> None:
    batches = tc.data.batches(store, range(50), 16, prefetch=prefetch)
    assert len(batches) == 4
    for _epoch in range(2):
        found = list(batches)
        assert [len(rows) for rows in found] == [16, 16, 16, 2]
        assert torch.equal(torch.cat(found), ROWS)
    assert not readers()


def test_each_epoch_has_another_order_which_its_seed_repeats(store: Any) -> None:
    def orders(seed: int, epochs: int) -> list[list[int]]:
        batches = tc.data.batches(store, range(50), 8, shuffle=seed, return_keys=True)
        return [[int(key) for rows, keys in batches for key in keys] for _ in range(epochs)]

    first = orders(7, 2)
    assert sorted(first[0]) == list(range(50)) and first[0] != first[1]
    assert orders(7, 2) == first and orders(8, 1)[0] != first[0]
    assert orders(0, 1)[0] != list(range(50)), "0 is a seed, not false"
    resumed = tc.data.batches(store, range(50), 8, shuffle=7, return_keys=True)
    resumed.set_epoch(1)
    assert [int(key) for _, keys in resumed for key in keys] == first[1]


def test_targets_keys_and_dropped_last_batch(store: Any) -> None:
    batches = tc.data.batches(
        store, range(50), 16, targets=torch.arange(50) + 1, return_keys=True, drop_last=True, shuffle=3
    )
    assert len(batches) == 3
    found = list(batches)
    assert len(found) == 3
    for rows, targets, keys in found:
        assert torch.equal(rows, ROWS[keys]) and torch.equal(targets, keys + 1)


def test_batches_are_read_while_the_consumer_works(store: Any) -> None:
    iterator = iter(tc.data.batches(store, range(50), 10, prefetch=2))
    next(iterator)
    assert len(readers()) == 1
    iterator.close()
    assert not readers(), "the thread ends with its iterator"


def test_a_loop_that_ends_early_ends_the_thread(store: Any) -> None:
    for _rows in tc.data.batches(store, range(50), 1):
        break
    deadline = time.monotonic() + 5
    while readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not readers()


def test_errors_of_the_thread_reach_the_consumer(store: Any) -> None:
    iterator = iter(tc.data.batches(store, [1, 2, 99], 2))
    assert torch.equal(next(iterator), ROWS[[1, 2]])
    with pytest.raises(tc.KeyMissingError, match="99"):
        next(iterator)


def test_ranks_have_as_many_samples_each(store: Any) -> None:
    def keys_of(rank: int, drop_last: bool) -> list[int]:
        batches = tc.data.batches(
            store, range(50), 8, shuffle=1, return_keys=True, rank=rank, world_size=3, drop_last=drop_last
        )
        keys = [int(key) for _, keys in batches for key in keys]
        assert len(list(batches)) == len(batches)
        return keys

    padded = [keys_of(rank, False) for rank in range(3)]
    assert [len(keys) for keys in padded] == [17, 17, 17] and {k for keys in padded for k in keys} == set(range(50))
    dropped = [keys_of(rank, True) for rank in range(3)]
    assert [len(keys) for keys in dropped] == [16, 16, 16]
    assert len({k for keys in dropped for k in keys}) == 48


def test_workers_of_a_loader_share_the_batches(store: Any) -> None:
    batches = tc.data.batches(store, range(50), 8, return_keys=True)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=2)
    found = list(loader)
    assert len(found) == 7
    assert sorted(int(key) for _, keys in found for key in keys) == list(range(50))
    assert all(torch.equal(rows, ROWS[keys]) for rows, keys in found)


def test_a_device_moves_every_tensor(tmp_path: Path) -> None:
    with tc.open(tmp_path, "trees") as store:
        store.put([1, 2], {"a": torch.rand(2, 3), "b": torch.rand(2)})
        rows, keys = next(iter(tc.data.batches(store, [1, 2], 2, device="meta", return_keys=True)))
        assert rows["a"].is_meta and rows["b"].is_meta and keys.is_meta


def test_arguments_out_of_range_are_refused(store: Any) -> None:
    for arguments in ({"batch_size": 0}, {"prefetch": -1}, {"rank": 0}, {"rank": 3, "world_size": 3}):
        with pytest.raises(tc.InvalidError):
            tc.data.batches(store, **arguments)


def test_no_keys_no_batches(tmp_path: Path) -> None:
    with tc.open(tmp_path, "empty") as store:
        batches = tc.data.batches(store)
        assert len(batches) == 0 and list(batches) == []


def test_batches_that_are_made_anew_have_another_order(store: Any) -> None:
    orders = {tuple(torch.cat(list(tc.data.batches(store, range(50), 7, shuffle=True)))[:, 0].tolist()) for _ in range(4)}
    assert len(orders) == 4
    torch.manual_seed(3)
    first = torch.cat(list(tc.data.batches(store, range(50), 7, shuffle=True)))
    torch.manual_seed(3)
    assert torch.equal(torch.cat(list(tc.data.batches(store, range(50), 7, shuffle=True))), first)


ABANDONED = """
import sys, torch, tensorcask as tc
with tc.open(sys.argv[1], "rows") as store:
    store.put(range(1000), torch.randn(1000, 16))
store = tc.open(sys.argv[1], "rows", mode="r")
left = iter(tc.data.batches(store, range(1000), 10))
next(left)
"""


def test_a_process_ends_well_if_batches_are_left_in_the_middle(tmp_path: Path) -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", ABANDONED, str(tmp_path)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
