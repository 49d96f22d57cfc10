"""Caches of torchcachex in several processes and ranks, after damage, and with other weights."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tensorcask as tc  # noqa: E402
from tensorcask.compat.torchcachex import ArrowIPCCacheBackend, CacheModuleDecorator  # noqa: E402
from torchcachex_helpers import assert_same, Doubler, again, backend, ids  # noqa: E402, F401


# Ranks and processes


def test_only_the_writer_rank_writes(tmp_path: Path) -> None:
    other = ArrowIPCCacheBackend(tmp_path, "m", writer_rank=0, current_rank=1)
    other.put_batch({"a": torch.ones(1)})
    other.flush()
    assert other.get_batch(["a"])[1] == [], "its LRU cache has it"
    writer = ArrowIPCCacheBackend(tmp_path, "m", writer_rank=0, current_rank=0)
    assert writer.get_batch(["a"])[1] == [0]


def test_other_ranks_read_what_the_writer_flushed(tmp_path: Path) -> None:
    other = ArrowIPCCacheBackend(tmp_path, "m", writer_rank=3, current_rank=1)
    assert other.get_batch(["a"])[1] == [0], "there is no store yet"
    writer = ArrowIPCCacheBackend(tmp_path, "m", writer_rank=3, current_rank=3)
    for name in ("a", "b"):
        writer.put_batch({name: torch.ones(1)})
        writer.flush()
        assert other.get_batch([name])[1] == []


def test_the_rank_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    assert ArrowIPCCacheBackend(tmp_path, "m").current_rank == 2
    assert ArrowIPCCacheBackend(tmp_path, "m", current_rank=0).current_rank == 0


def test_two_writers_in_one_folder_lose_nothing(tmp_path: Path) -> None:
    backends = [ArrowIPCCacheBackend(tmp_path, "m", async_write=False) for _ in range(2)]
    for at, backend in enumerate(backends):
        backend.put_batch({f"k{at}": torch.full((2,), float(at))})
        backend.flush()
    for backend in backends:
        found, missing = backend.get_batch(["k0", "k1"])
        assert missing == [] and found[1].tolist() == [1.0, 1.0]


def test_a_forked_child_writes_with_a_handle_of_its_own(tmp_path: Path) -> None:
    module, x = Doubler(), torch.randn(4, 2)
    backend = ArrowIPCCacheBackend(tmp_path, "m")
    cached = CacheModuleDecorator(module, backend)
    cached(x[:2], cache_ids=ids(0, 1))
    backend.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert torch.equal(cached(x, cache_ids=ids(0, 1, 2, 3)), x * 2)
            assert module.samples == 4
            backend.flush()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(cached(x, cache_ids=ids(0, 1, 2, 3)), x * 2)
    assert module.samples == 2


def test_workers_of_a_data_loader_share_the_cache(tmp_path: Path) -> None:
    class Data(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.cached = CacheModuleDecorator(Doubler(), ArrowIPCCacheBackend(tmp_path, "m"))

        def __len__(self) -> int:
            return 8

        def __getitem__(self, at: int) -> Any:
            return self.cached(torch.full((1, 2), float(at)), cache_ids=[at])[0]

    for _ in range(2):
        rows = torch.cat(list(torch.utils.data.DataLoader(Data(), batch_size=4, num_workers=2)))
        assert torch.equal(rows[:, 0], torch.arange(8.0) * 2)
    reader = ArrowIPCCacheBackend(tmp_path, "m")
    assert reader.get_batch([str(at) for at in range(8)])[1] == [], "workers write what is pending when they end"


def test_a_backend_is_pickled_as_its_folder(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(Doubler(), backend)
    cached(torch.ones(1, 1), cache_ids=["a"])
    other = pickle.loads(pickle.dumps(cached))
    other(torch.ones(1, 1), cache_ids=["a"])
    assert other.module.samples == cached.module.samples == 1
    assert other.cache.cache_dir == backend.cache_dir and len(other.cache.lru) == 1


def test_a_deep_copy_shares_the_backend(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(torch.nn.Linear(2, 2).requires_grad_(False), backend)
    cached(torch.ones(1, 2), cache_ids=["a"])
    other = copy.deepcopy(cached)
    assert other.cache is backend and other.module is not cached.module
    assert torch.equal(other(torch.ones(1, 2), cache_ids=["a"]), cached(torch.ones(1, 2), cache_ids=["a"]))


def test_a_killed_process_leaves_all_flushed_values(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import os, sys, torch
        from tensorcask.compat.torchcachex import ArrowIPCCacheBackend
        backend = ArrowIPCCacheBackend(sys.argv[1], "m")
        backend.put_batch({f"k{at}": torch.full((4,), float(at)) for at in range(50)})
        backend.flush()
        os.kill(os.getpid(), 9)
    """)
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    found, missing = ArrowIPCCacheBackend(tmp_path, "m").get_batch([f"k{at}" for at in range(50)])
    assert missing == [] and found[49].tolist() == [49.0] * 4


def test_files_of_an_interrupted_write_are_ignored(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(1)})
    backend.flush()
    (backend.segments_dir / "segment_000001.arrow.tmp").write_text("incomplete")
    backend.index_path.write_bytes(b"not a pickle")
    assert again(backend).get_batch(["a"])[1] == []


def test_a_damaged_row_is_an_error_and_not_a_miss(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.full((1000,), 1.5)})
    backend.close()
    (segment,) = backend.segments_dir.glob("segment_*.arrow")
    content = bytearray(segment.read_bytes())
    at = content.find(torch.full((1000,), 1.5).numpy().tobytes())
    content[at + 100] ^= 1
    segment.write_bytes(content)
    reader = ArrowIPCCacheBackend(str(backend.cache_dir.parent), "module", current_rank=1)
    with pytest.raises(tc.CorruptError):
        reader.get_batch(["a"])


def test_segments_of_torchcachex_are_mentioned(tmp_path: Path) -> None:
    segments = tmp_path / "m" / "segments"
    segments.mkdir(parents=True)
    (segments / "segment_000000.arrow").write_bytes(b"ARROW1")
    with pytest.warns(tc.TensorcaskWarning, match="tensorcask import-torchcachex"):
        ArrowIPCCacheBackend(tmp_path, "m")
    assert (segments / "segment_000000.arrow").exists()


def test_a_closed_backend_cannot_be_used(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(1)})
    backend.close()
    with pytest.raises(tc.InvalidError, match="closed"):
        backend.get_batch(["b"])
    assert ArrowIPCCacheBackend(str(backend.cache_dir.parent), "module").get_batch(["a"])[1] == []


def test_dropping_a_backend_flushes_it(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m")
    backend.put_batch({"a": torch.ones(1)})
    del backend
    assert ArrowIPCCacheBackend(tmp_path, "m").get_batch(["a"])[1] == []


def test_a_removed_folder_is_not_made_again(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path / "cache", "m")
    backend.put_batch({"a": torch.ones(1)})
    shutil.rmtree(tmp_path / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del backend
    assert not (tmp_path / "cache").exists()


# Weights


def test_other_weights_under_the_same_module_id_are_a_warning(tmp_path: Path) -> None:
    def cached() -> CacheModuleDecorator:
        return CacheModuleDecorator(torch.nn.Linear(2, 2).requires_grad_(False), ArrowIPCCacheBackend(tmp_path, "m"))

    x, first, second = torch.ones(1, 2), cached(), cached()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = first(x, cache_ids=["a"])
        first(x, cache_ids=["a"])
        first.cache.flush()
    with pytest.warns(tc.TensorcaskWarning, match="other weights"):
        assert torch.equal(second(x, cache_ids=["a"]), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second(x, cache_ids=["a"])
        second.module.load_state_dict(first.module.state_dict())
        CacheModuleDecorator(second.module, ArrowIPCCacheBackend(tmp_path, "m"))(x, cache_ids=["a"])


def test_weights_that_are_loaded_later_are_a_warning(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(torch.nn.Linear(2, 2).requires_grad_(False), backend)
    cached(torch.ones(1, 2), cache_ids=["a"])
    cached.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
    with pytest.warns(tc.TensorcaskWarning, match="other weights"):
        cached(torch.ones(1, 2), cache_ids=["a"])


# Caches that torchcachex wrote


def write_segment(folder: Path, number: int, columns: dict[str, Any], metadata: dict[str, str]) -> None:
    """A segment as torchcachex lays it out."""
    pyarrow = pytest.importorskip("pyarrow")
    (folder / "segments").mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns).replace_schema_metadata(metadata)
    with pyarrow.ipc.new_file(str(folder / "segments" / f"segment_{number:06d}.arrow"), table.schema) as writer:
        writer.write_table(table)


def run_import(folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tensorcask", "--format", "json", "import-torchcachex", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_imported_segments_are_hits(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    folder, x = tmp_path / "m", torch.randn(6, 4)
    for number in range(2):
        rows = range(3 * number, 3 * number + 3)
        columns = {
            "key": [f"sample_{row}" for row in rows],
            "data": pyarrow.array([(x[row] * 2).tolist() for row in rows], pyarrow.list_(pyarrow.float32())),
            "shape": pyarrow.array([[4]] * 3, pyarrow.list_(pyarrow.int64())),
        }
        write_segment(folder, number, columns, {"torch_dtype": "torch.float32"})
    (folder / "schema.json").write_text('{"fields": [], "metadata": {}, "output_structure": "tensor"}')
    (folder / "index.pkl").write_bytes(b"cos\nabort\n(tR.")
    assert run_import(folder)["imported"] == 6
    module = Doubler()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached = CacheModuleDecorator(module, ArrowIPCCacheBackend(tmp_path, "m"))
    assert torch.equal(cached(x, cache_ids=ids(*range(6))), x * 2) and module.samples == 0
    assert cached(x[:1], cache_ids=ids(6)).shape == (1, 4) and module.samples == 1


def test_imported_dicts_and_sequences_have_their_structure(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")

    def tensor(name: str, value: Any) -> dict[str, Any]:
        kind = pyarrow.from_numpy_dtype(value.numpy().dtype)
        data = pyarrow.array([value.flatten().numpy()], pyarrow.list_(kind))
        shape = pyarrow.array([list(value.shape)], pyarrow.list_(pyarrow.int64()))
        return {f"{name}_data": data, f"{name}_shape": shape}

    half, numbers = torch.randn(2, 3).half(), torch.arange(4)
    fields = {"key": ["a"], **tensor("logits", half), **tensor("ids", numbers)}
    write_segment(tmp_path / "dict", 0, fields, {"tensor_keys": json.dumps(["logits", "ids"])})
    write_segment(tmp_path / "list", 0, {"key": ["a"], **tensor("item0", half), **tensor("item1", numbers)}, {})
    (tmp_path / "list" / "schema.json").write_text('{"output_structure": "list"}')
    write_segment(tmp_path / "tuple", 0, {"key": ["a"], **tensor("item0", half), **tensor("item1", numbers)}, {})
    expected = {"dict": {"logits": half, "ids": numbers}, "list": [half, numbers], "tuple": (half, numbers)}
    for name, value in expected.items():
        assert run_import(tmp_path / name)["imported"] == 1
        assert_same(ArrowIPCCacheBackend(tmp_path, name).get_batch(["a"])[0][0], value)
