"""What the documentation of torchcachex promises of its backend, and what tensorcask adds."""

from __future__ import annotations

import json
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tensorcask as tc  # noqa: E402
from tensorcask.compat.torchcachex import ArrowIPCCacheBackend  # noqa: E402
from tensorcask.compat.torchcachex.utils import (  # noqa: E402
    _deserialize_sample,
    _serialize_sample,
    _tree_index,
    _tree_stack,
)
from torchcachex_helpers import again, backend  # noqa: E402, F401


# The backend


def test_get_batch_returns_values_in_order_and_missing_positions(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(2), "c": torch.zeros(2)})
    for reader in (backend, again(backend)):
        results, missing = reader.get_batch(["c", "b", "a", "b"])
        assert missing == [1, 3] and results[1] is None
        assert torch.equal(results[0], torch.zeros(2)) and torch.equal(results[2], torch.ones(2))
    assert backend.get_batch([]) == ([], [])


def test_put_batch_of_nothing(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({})
    assert backend.output_structure is None and len(backend.index) == 0


def test_the_newest_value_of_a_key_wins(backend: ArrowIPCCacheBackend) -> None:
    for number in range(3):
        backend.put_batch({"a": torch.full((2,), float(number))})
        backend.flush()
    assert again(backend).get_batch(["a"])[0][0].tolist() == [2.0, 2.0]


def test_the_order_of_puts_is_kept_with_many_threads(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", lru_size=0, max_workers=8, flush_every=1)
    for number in range(100):
        backend.put_batch({"a": torch.tensor([number])})
    backend.flush()
    assert again(backend).get_batch(["a"])[0][0].item() == 99


@pytest.mark.parametrize("async_write", [False, True])
def test_values_are_found_before_and_after_the_flush(tmp_path: Path, async_write: bool) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", lru_size=0, async_write=async_write, flush_every=10)
    for start in range(0, 100, 7):
        backend.put_batch({f"k{number}": torch.tensor(number) for number in range(start, start + 7)})
        assert backend.get_batch([f"k{start}", "k0"])[1] == []
    backend.flush()
    found, missing = again(backend).get_batch([f"k{number}" for number in range(105)])
    assert missing == [] and [int(value) for value in found] == list(range(105))


def test_flush_every_counts_samples(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", async_write=False, flush_every=3)
    reader = ArrowIPCCacheBackend(tmp_path, "m", current_rank=1)
    backend.put_batch({"a": torch.ones(1), "b": torch.ones(1)})
    assert reader.get_batch(["a", "b"])[1] == [0, 1]
    backend.put_batch({"c": torch.ones(1)})
    assert reader.get_batch(["a", "b", "c"])[1] == []


def test_async_write_false_has_no_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    backend = ArrowIPCCacheBackend(tmp_path, "m", async_write=False, flush_every=1)
    assert backend.executor is None
    backend.put_batch({"a": torch.ones(1)})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tensorcask-write")]
    assert threading.active_count() >= before


def test_the_lru_discards_what_was_used_longest_ago(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", lru_size=2, async_write=False)
    backend.put_batch({"a": torch.ones(1), "b": torch.ones(1)})
    backend.get_batch(["a"])
    backend.put_batch({"c": torch.ones(1)})
    assert set(backend.lru) == {"a", "c"} and backend.lru.currsize == 2 and backend.lru.maxsize == 2
    assert backend.get_batch(["b"])[1] == []


def test_values_that_are_read_enter_the_lru(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(1)})
    reader = again(backend)
    assert len(reader.lru) == 0
    reader.get_batch(["a"])
    assert list(reader.lru) == ["a"]


def test_lru_size_0_turns_the_lru_off(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", lru_size=0, async_write=False)
    backend.put_batch({"a": torch.ones(1)})
    backend.flush()
    assert backend.get_batch(["a"])[1] == []
    assert not backend.lru_enabled and len(backend.lru) == 0


def test_returned_and_put_tensors_are_not_the_cached_ones(backend: ArrowIPCCacheBackend) -> None:
    value = torch.ones(2)
    backend.put_batch({"a": value})
    value.fill_(5)
    for _ in range(2):
        backend.get_batch(["a"])[0][0].fill_(7)
    backend.flush()
    backend.lru.clear()
    for _ in range(2):
        assert backend.get_batch(["a"])[0][0].tolist() == [1.0, 1.0]
        backend.get_batch(["a"])[0][0].fill_(7)


def test_values_are_detached_and_on_the_cpu(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(2, requires_grad=True) * 2})
    (found,), _ = backend.get_batch(["a"])
    assert not found.requires_grad and found.device.type == "cpu"


def test_map_location_moves_cached_tensors(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": {"x": torch.ones(2)}})
    for _ in range(2):
        assert backend.get_batch(["a"], map_location="meta")[0][0]["x"].device.type == "meta"
        backend.flush()
        backend.lru.clear()


def test_schema_is_inferred_from_the_first_output(tmp_path: Path) -> None:
    cases: dict[str, tuple[Any, list[str]]] = {
        "tensor": (torch.ones(2), ["key", "data", "shape"]),
        "dict": ({"f": torch.ones(2), "meta": "x"}, ["key", "f_data", "f_shape", "meta_blob"]),
        "tuple": ((torch.ones(2), torch.ones(1)), ["key", "item0_data", "item0_shape", "item1_data", "item1_shape"]),
        "list": ([torch.ones(2)], ["key", "item0_data", "item0_shape"]),
        "blob": (5, ["key", "blob"]),
    }
    for name, (value, columns) in cases.items():
        backend = ArrowIPCCacheBackend(tmp_path, name, async_write=False)
        assert backend.schema is None
        backend.put_batch({"a": value})
        assert backend.output_structure == name
        content = json.loads(backend.schema_path.read_text())
        assert [field["name"] for field in content["fields"]] == columns
        assert ArrowIPCCacheBackend(tmp_path, name).output_structure == name


def test_schema_is_an_arrow_schema(backend: ArrowIPCCacheBackend) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    backend.put_batch({"a": torch.ones(2, dtype=torch.float16)})
    data, shape = pyarrow.list_(pyarrow.float16()), pyarrow.list_(pyarrow.int64())
    assert backend.schema == pyarrow.schema([("key", pyarrow.string()), ("data", data), ("shape", shape)])
    assert backend.schema.metadata == {b"torch_dtype": b"torch.float16"}


def test_a_damaged_schema_is_inferred_again(backend: ArrowIPCCacheBackend, caplog: pytest.LogCaptureFixture) -> None:
    backend.put_batch({"a": torch.ones(2)})
    backend.flush()
    backend.schema_path.write_text("corrupted json {{{")
    other = ArrowIPCCacheBackend(str(backend.cache_dir.parent), "module", async_write=False)
    assert other.schema is None and "schema.json" in caplog.text
    other.put_batch({"b": torch.ones(2)})
    assert other.output_structure == "tensor" and other.get_batch(["a", "b"])[1] == []
    assert json.loads(other.schema_path.read_text())["output_structure"] == "tensor"


def test_outputs_of_one_module_may_differ_in_structure(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(2), "b": {"x": torch.ones(3)}, "c": (torch.ones(1), "text"), "d": 4})
    found, missing = again(backend).get_batch(["d", "c", "b", "a"])
    assert missing == [] and found[0] == 4 and found[1][1] == "text" and found[2]["x"].shape == (3,)


def test_the_index_says_what_is_stored(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(1), "b": torch.ones(1)})
    backend.flush()
    assert len(backend.index) == 2 and "a" in backend.index and "z" not in backend.index
    assert set(backend.index) == {"a", "b"}


# Trees


def test_tree_index_takes_a_sample_out_of_nested_batches() -> None:
    batch = {"img": torch.arange(8).reshape(4, 2), "pair": (torch.arange(4), "text"), "more": [{"x": torch.arange(4)}]}
    sample = _tree_index(batch, 1)
    assert sample["img"].tolist() == [2, 3] and sample["pair"][0].item() == 1 and sample["pair"][1] == "text"
    assert sample["more"][0]["x"].item() == 1
    assert _tree_index([torch.ones(12, 30), torch.ones(12, 50)], 1).shape == (12, 50)


def test_tree_stack_is_the_inverse_of_tree_index() -> None:
    samples = [{"img": torch.full((3,), float(at)), "label": at, "t": (torch.ones(at + 1),)} for at in range(4)]
    batch = _tree_stack(samples)
    assert batch["img"].shape == (4, 3) and batch["label"] == [0, 1, 2, 3]
    assert [len(item) for item in batch["t"][0]] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="empty"):
        _tree_stack([])


def test_samples_are_serialized_without_code() -> None:
    sample = {"a": torch.randn(3, requires_grad=True), "b": [1, "x", (None, 2.5)]}
    found = _deserialize_sample(_serialize_sample(sample))
    assert torch.equal(found["a"], sample["a"]) and not found["a"].requires_grad and found["b"] == sample["b"]
    blob = pickle.dumps(os.getcwd)
    with pytest.raises(Exception, match="(?i)weights|unsupported|unpickl|magic|invalid"):
        _deserialize_sample(blob)


def test_outputs_without_some_parts_are_read_from_the_store(tmp_path: Path) -> None:
    values = {"a": {"x": torch.ones(2), "hidden": None}, "b": {"x": torch.zeros(2), "hidden": None}}
    with ArrowIPCCacheBackend(str(tmp_path), "m", async_write=False) as backend:
        backend.put_batch(values)
        backend.flush()
    with ArrowIPCCacheBackend(str(tmp_path), "m", async_write=False) as backend:
        found, missing = backend.get_batch(["a", "b"])
    assert missing == [] and found[0]["hidden"] is None and torch.equal(found[0]["x"], torch.ones(2))
