"""Stores without PyTorch: arrays of NumPy, plain buffers, Arrow."""

from __future__ import annotations

import array
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorcask as tc

ROWS = np.arange(40, dtype=np.float32).reshape(10, 4)


def test_numpy_arrays(tmp_path: Path) -> None:
    with tc.open(tmp_path, "rows", format="numpy") as store:
        store.put(np.arange(10), ROWS)
        read = store.take(np.array([9, 2], dtype=np.int16))
        assert isinstance(read, np.ndarray) and np.array_equal(read, ROWS[[9, 2]])
        rows, found = store.get(np.array([1, 50], dtype=np.uint64))
        assert found.tolist() == [True, False] and found.dtype == bool and np.array_equal(rows[0], ROWS[1])
        out = np.empty((2, 4), np.float32)
        assert store.take([1, 2], out=out) is out and np.array_equal(out, ROWS[1:3])
        assert isinstance(store[3], np.ndarray)
        with pytest.raises(tc.InvalidError, match="row-major"):
            store.take([1, 2], out=np.empty((4, 2), np.float32).T)


@pytest.mark.parametrize("name", ["bool", "int8", "uint16", "int32", "uint64", "float16", "float64", "complex64"])
def test_numpy_dtypes(tmp_path: Path, name: str) -> None:
    rows = (np.random.default_rng(0).random((5, 3)) * 100).astype(name)
    for variant in (rows, np.asfortranarray(rows), rows.astype(rows.dtype.newbyteorder(">")), rows[:, ::-1]):
        with tc.open(tmp_path, name, format="numpy") as store:
            store.put(range(5), variant)
            read = store.take(range(5))
        assert read.dtype == np.dtype(name) and np.array_equal(read, variant)


def test_arrays_that_cannot_be_stored(tmp_path: Path) -> None:
    with tc.open(tmp_path, "rows", format="numpy") as store:
        for rows in (np.array(["a", "b"]), np.array([object(), object()]), np.zeros(2, "complex128"), np.zeros(2, "M8[s]")):
            with pytest.raises(tc.InvalidError, match="dtype"):
                store.put([1, 2], rows)
        assert len(store) == 0


def test_plain_buffers(tmp_path: Path) -> None:
    with tc.open(tmp_path, "rows", format="bytes") as store:
        flat = array.array("f", range(8))
        store.put(["a", "b"], memoryview(flat).cast("B").cast("f", (2, 4)))
        read = store.take(["b"])
        assert isinstance(read, memoryview) and read.shape == (1, 4) and read.tolist() == [[4.0, 5.0, 6.0, 7.0]]
        rows, found = store.get(["a", "?"])
        assert rows.tolist() == [[0.0, 1.0, 2.0, 3.0], [0.0] * 4] and found == [True, False]
        store.put(["x"], array.array("q", [7]))
        assert store["x"].tolist() == 7 or store["x"].tolist() == [7]


WITHOUT = """
import sys
sys.modules["torch"] = None
sys.modules["numpy"] = None
import tensorcask as tc
with tc.open(sys.argv[1], "rows") as store:
    assert store.format == "bytes"
    store.put(["a"], memoryview(b"12345678").cast("d", (1,)))
    assert store.take(["a"]).tobytes() == b"12345678"
try:
    tc.cache(len, "x")
except ImportError as error:
    assert "pip install tensorcask[torch]" in str(error), error
else:
    raise SystemExit("torch is missing, and nothing was said")
print("done")
"""


def test_neither_torch_nor_numpy_is_needed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr


def test_the_package_imports_nothing_heavy() -> None:
    code = "import sys, tensorcask; print(sorted({'torch', 'numpy', 'pyarrow', 'inspect'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def table_store(tmp_path: Path) -> Any:
    with tc.open(tmp_path, "rows", format="numpy") as store:
        store.put([f"k{at}" for at in range(10)], {"vector": ROWS, "label": np.arange(10)})
        yield store


def test_pyarrow_reads_a_store(table_store: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = table_store.to_arrow()
    assert table.num_rows == 10 and table.column_names == ["key", "value/vector", "value/label"]
    by_key = dict(zip(table["key"].to_pylist(), table["value/label"].to_pylist()))
    assert by_key == {f"k{at}": at for at in range(10)}
    reader = pyarrow.RecordBatchReader.from_stream(table_store)
    assert sum(batch.num_rows for batch in reader) == 10


def test_polars_duckdb_and_pandas_read_a_store(tmp_path: Path) -> None:
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    with tc.open(tmp_path, "labels", format="numpy") as store:
        store.put(range(10), np.arange(10) * 2)
        frame = polars.DataFrame(store)
        assert frame.sort("key")["value"].to_list() == [2 * at for at in range(10)]
        reader = pyarrow.RecordBatchReader.from_stream(store)
        assert duckdb.sql("select sum(value) from reader").fetchall() == [(90,)]
        assert isinstance(store.to_arrow().to_pandas(), pandas.DataFrame)


def test_an_empty_store_and_ragged_rows_as_arrow(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with tc.open(tmp_path, "rows", format="numpy") as store:
        assert store.to_arrow().num_rows == 0
        store.put(["a", "b"], [np.zeros((2, 3), np.float32), np.ones((1, 3), np.float32)])
        lists = dict(zip(store.to_arrow()["key"].to_pylist(), store.to_arrow()["value"].to_pylist()))
        assert lists["b"] == [[1.0, 1.0, 1.0]]
        store["c"] = "text"
        with pytest.raises(tc.TensorcaskError):
            store.to_arrow()
