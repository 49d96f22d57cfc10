"""``StoreDataset`` in a ``DataLoader``."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tensorcask as tc  # noqa: E402
from tensorcask.data import GatheredBatch, StoreDataset, collate  # noqa: E402

ROWS = torch.arange(100 * 6, dtype=torch.float32).reshape(100, 2, 3)
DataLoader = torch.utils.data.DataLoader


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    with tc.open(tmp_path, "features") as store:
        store.put(range(100), ROWS)
        store.flush()
        yield store


class Counting:
    """A store that counts its reads."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.takes: list[int] = []

    def take(self, keys: Any, out: Any = None) -> Any:
        self.takes.append(len(keys))
        return self.store.take(keys, out=out)

    def keys(self) -> list[Any]:
        return self.store.keys()


def test_a_batch_is_one_gather_and_is_not_copied_by_default_collate(store: Any) -> None:
    counting = Counting(store)
    loader = DataLoader(StoreDataset(counting, torch.arange(100)), batch_size=32)
    batches = list(loader)
    assert counting.takes == [32, 32, 32, 4]
    assert [tuple(batch.shape) for batch in batches] == [(32, 2, 3)] * 3 + [(4, 2, 3)]
    assert torch.equal(torch.cat(batches), ROWS)
    assert type(batches[0]) is torch.Tensor

    rows = torch.zeros(4, 2)
    batch = GatheredBatch((rows,), 4, is_tuple=False)
    assert torch.utils.data.default_collate(batch) is rows
    assert collate(batch) is rows


def test_shuffled_batches_have_each_sample_once_and_the_right_row(store: Any) -> None:
    dataset = StoreDataset(store, range(100), return_keys=True)
    loader = DataLoader(dataset, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(1))
    seen = []
    for rows, keys in loader:
        assert torch.equal(rows, ROWS[keys])
        assert keys.dtype == torch.int64
        seen += keys.tolist()
    assert seen != sorted(seen) and sorted(seen) == list(range(100))


def test_all_keys_of_the_store_are_the_default(store: Any) -> None:
    dataset = StoreDataset(store)
    assert len(dataset) == 100
    assert sorted(dataset.keys.tolist()) == list(range(100))
    store.put([100], ROWS[:1])
    assert len(dataset) == 100, "keys that are put later are not included"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_read_by_themselves(store: Any, method: str) -> None:
    dataset = StoreDataset(store, range(100), targets=torch.arange(100) * 2)
    loader = DataLoader(
        dataset, batch_size=8, num_workers=2 if method == "fork" else 1, multiprocessing_context=method,
        persistent_workers=True,
    )
    for _epoch in range(2):
        rows, targets = zip(*loader, strict=True)
        assert torch.equal(torch.cat(rows), ROWS)
        assert torch.equal(torch.cat(targets), torch.arange(100) * 2)
    del loader


def test_workers_read_into_shared_memory_once_they_know_the_rows(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gather = StoreDataset(store, range(100))._gather
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    assert not gather.take([0, 1]).is_shared()
    rows = gather.take([3, 2])
    assert rows.is_shared() and torch.equal(rows, ROWS[[3, 2]])
    store.put([200], torch.zeros(1, 5))
    mixed = gather.take([3, 200])
    assert [tuple(row.shape) for row in mixed] == [(2, 3), (5,)]
    assert torch.equal(gather.take([7])[0], ROWS[7])


def test_a_worker_reports_missing_keys(store: Any) -> None:
    loader = DataLoader(StoreDataset(store, [1, 2, 1000]), batch_size=3, num_workers=1)
    with pytest.raises(tc.KeyMissingError, match="1000"):
        list(loader)


def test_batch_samplers_subsets_and_splits(store: Any) -> None:
    dataset = StoreDataset(store, range(100))
    sampler = torch.utils.data.BatchSampler(torch.utils.data.SequentialSampler(dataset), 10, drop_last=False)
    assert torch.equal(torch.cat(list(DataLoader(dataset, batch_sampler=sampler))), ROWS)
    left, right = torch.utils.data.random_split(dataset, [60, 40], torch.Generator().manual_seed(0))
    counted = [sum(len(batch) for batch in DataLoader(part, batch_size=7)) for part in (left, right)]
    assert counted == [60, 40]
    assert torch.equal(next(iter(DataLoader(left, batch_size=60))), ROWS[left.indices])


def test_ranks_of_a_distributed_sampler_share_the_samples(store: Any) -> None:
    dataset = StoreDataset(store, range(100), return_keys=True)
    seen: list[int] = []
    for rank in range(3):
        sampler = torch.utils.data.DistributedSampler(dataset, num_replicas=3, rank=rank, shuffle=True, drop_last=True)
        for rows, keys in DataLoader(dataset, batch_size=8, sampler=sampler):
            assert torch.equal(rows, ROWS[keys])
            seen += keys.tolist()
    assert len(seen) == 99 == len(set(seen))


def test_samples_by_index(store: Any) -> None:
    dataset = StoreDataset(store, range(100), targets=list(range(100)))
    row, target = dataset[7]
    assert type(row) is torch.Tensor and torch.equal(row, ROWS[7]) and int(target) == 7
    assert torch.equal(dataset[-1][0], ROWS[99])
    with pytest.raises(IndexError):
        dataset[100]
    with pytest.raises(IndexError):
        dataset[-101]


def test_targets_by_mapping_sequence_and_store(store: Any, tmp_path: Path) -> None:
    keys = [5, 3, 9]
    by_mapping = StoreDataset(store, keys, targets={3: "c", 5: "e", 9: "i"})
    rows, targets = next(iter(DataLoader(by_mapping, batch_size=3)))
    assert list(targets) == ["e", "c", "i"] and torch.equal(rows, ROWS[keys])
    with tc.open(tmp_path, "labels") as labels:
        labels.put(range(100), torch.arange(100).reshape(100, 1))
        joined = StoreDataset(store, keys, targets=labels)
        rows, targets = next(iter(DataLoader(joined, batch_size=3)))
        assert targets.flatten().tolist() == keys
    with pytest.raises(tc.InvalidError, match="2 targets for 3 keys"):
        StoreDataset(store, keys, targets=[1, 2])
    with pytest.raises(tc.KeyMissingError, match="no target"):
        StoreDataset(store, keys, targets={3: 1})


def test_transforms(store: Any) -> None:
    dataset = StoreDataset(
        store,
        range(100),
        targets=torch.arange(100),
        transform=lambda row: row.sum(),
        target_transform=lambda target: -target,
    )
    rows, targets = next(iter(DataLoader(dataset, batch_size=10)))
    assert torch.equal(rows, ROWS[:10].sum((1, 2))) and torch.equal(targets, -torch.arange(10))
    whole = StoreDataset(store, range(100), batch_transform=lambda rows: rows.flatten(1) * 2)
    assert torch.equal(next(iter(DataLoader(whole, batch_size=10))), ROWS[:10].flatten(1) * 2)
    assert torch.equal(whole[3], ROWS[3].flatten() * 2)


def test_missing_keys_are_dropped_on_request(store: Any) -> None:
    keys = [1, 500, 2, 600]
    dataset = StoreDataset(store, keys, targets=torch.tensor([10, 20, 30, 40]), return_keys=True, missing="drop")
    assert len(dataset) == 2 and dataset.keys.tolist() == [1, 2]
    rows, targets, found = next(iter(DataLoader(dataset, batch_size=4)))
    assert targets.tolist() == [10, 30] and found.tolist() == [1, 2] and torch.equal(rows, ROWS[[1, 2]])
    with pytest.raises(tc.KeyMissingError, match="500"):
        StoreDataset(store, keys)[1]
    with pytest.raises(tc.InvalidError, match="missing"):
        StoreDataset(store, keys, missing="skip")  # type: ignore[arg-type]


def test_string_keys_and_trees(tmp_path: Path) -> None:
    with tc.open(tmp_path, "trees") as store:
        names = [f"sample {number}" for number in range(20)]
        rows = {"mean": torch.rand(20, 4), "parts": (torch.rand(20, 2, 2).half(), torch.arange(20))}
        store.put(names, rows)
        dataset = StoreDataset(store, names, return_keys=True)
        for workers in (0, 1):
            batch, keys = next(iter(DataLoader(dataset, batch_size=5, num_workers=workers)))
            assert list(keys) == names[:5]
            assert torch.equal(batch["mean"], rows["mean"][:5])
            assert torch.equal(batch["parts"][0], rows["parts"][0][:5])
        sample, key = dataset[6]
        assert key == "sample 6" and torch.equal(sample["parts"][1], rows["parts"][1][6])


def test_collate_functions_of_the_caller_see_samples(store: Any) -> None:
    dataset = StoreDataset(store, range(100), targets=torch.arange(100))

    def pairs(samples: Any) -> Any:
        rows, targets = zip(*samples, strict=True)
        first, target = samples[0]
        assert torch.equal(first, rows[0]) and len(samples) == 10 and len(samples[2:4]) == 2
        return torch.stack(rows).sum(0), sum(int(target) for target in targets)

    total, targets = next(iter(DataLoader(dataset, batch_size=10, collate_fn=pairs)))
    assert torch.equal(total, ROWS[:10].sum(0)) and targets == 45

    def doubled(samples: Any) -> Any:
        row = samples[0]
        assert isinstance(row, torch.Tensor) and type(row * 2) is torch.Tensor
        return torch.utils.data.default_collate([samples[0], samples[1]])

    two = next(iter(DataLoader(StoreDataset(store, range(100)), batch_size=10, collate_fn=doubled)))
    assert torch.equal(two, ROWS[:2]) and type(two) is torch.Tensor


def test_rows_of_several_shapes_need_a_collate_function(tmp_path: Path) -> None:
    with tc.open(tmp_path, "ragged") as store:
        rows = [torch.full((length, 2), float(length)) for length in (1, 3, 2)]
        store.put([0, 1, 2], rows)
        dataset = StoreDataset(store, [0, 1, 2])
        padded = next(
            iter(
                DataLoader(
                    dataset,
                    batch_size=3,
                    collate_fn=lambda samples: torch.nn.utils.rnn.pad_sequence(list(samples), batch_first=True),
                )
            )
        )
        assert padded.shape == (3, 3, 2) and padded.sum() == sum(row.sum() for row in rows)
        with pytest.raises(RuntimeError):
            next(iter(DataLoader(dataset, batch_size=3)))


def test_numpy_stores_give_tensors(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    with tc.open(tmp_path, "numpy", format="numpy") as store:
        store.put([1, 2], numpy.array([[1.0, 2.0], [3.0, 4.0]]))
        batch = next(iter(DataLoader(StoreDataset(store, [2, 1]), batch_size=2)))
        assert torch.equal(batch, torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=torch.float64))


def test_a_dataset_is_pickled_with_its_store(store: Any) -> None:
    dataset = pickle.loads(pickle.dumps(StoreDataset(store, [4, 2], targets=[1, 0])))
    row, target = dataset[0]
    assert torch.equal(row, ROWS[4]) and int(target) == 1


def test_keys_that_are_no_list_are_refused(store: Any) -> None:
    for keys in ("name", torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3)):
        with pytest.raises(tc.InvalidError):
            StoreDataset(store, keys)


def test_empty_datasets(tmp_path: Path) -> None:
    with tc.open(tmp_path, "empty") as store:
        assert list(DataLoader(StoreDataset(store), batch_size=4)) == []
