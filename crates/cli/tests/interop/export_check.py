"""Checks the files that `tensorcask export` wrote to the folder in the argument: see ../it/output/columns.rs."""

import json
import pathlib
import struct
import sys

import numpy
import polars
import pyarrow

folder = pathlib.Path(sys.argv[1])


def expected(row):
    shape = (row % 3 + 1, 2)
    return {
        "key": f"{row:02}",
        "value/tokens": [[row + 0.5] * 2] * shape[0],
        "value/vector": [float(row), 0.10009765625, -1.0],
        "value/label": row,
    }


def plain(kind):
    if pyarrow.types.is_list(kind):
        return plain(kind.value_type)
    return not isinstance(kind, pyarrow.BaseExtensionType) and not pyarrow.types.is_fixed_size_list(kind)


for name in ("a.arrows", "b.arrow", "c.arrow"):
    opener = pyarrow.ipc.open_file if name == "c.arrow" else pyarrow.ipc.open_stream
    with pyarrow.memory_map(str(folder / name)) as source:
        table = opener(source).read_all()
        table.validate(full=True)
        assert all(plain(field.type) and not field.metadata for field in table.schema), table.schema
        rows = sorted(table.to_pylist(), key=lambda row: row["key"])
        assert rows == [expected(row) for row in range(50)], rows[0]
    read = polars.read_ipc if name == "c.arrow" else polars.read_ipc_stream
    assert read(folder / name).height == 50

try:
    import datasets
except ImportError:
    print("datasets is not installed: it was not run")
else:
    found = datasets.Dataset.from_file(str(folder / "a.arrows"))
    assert sorted(found, key=lambda row: row["key"]) == [expected(row) for row in range(50)]
    print("datasets", datasets.__version__)

# Fixed shapes, in three formats: the same rows.
wanted = numpy.arange(1200, dtype=numpy.float32).reshape(200, 2, 3)
array = numpy.load(folder / "d.npy")
keys = numpy.loadtxt(folder / "d.npy.keys", dtype=numpy.int64)
assert array.shape == (200, 2, 3) and (array[numpy.argsort(keys)] == wanted).all()
with pyarrow.memory_map(str(folder / "d.arrow")) as source:
    table = pyarrow.ipc.open_file(source).read_all()
    array = table.column("value").combine_chunks().to_numpy_ndarray()
    assert (array[numpy.argsort(table.column("key").to_numpy())] == wanted).all()
data = (folder / "d.safetensors").read_bytes()
(header_len,) = struct.unpack("<Q", data[:8])
for name, about in json.loads(data[8 : 8 + header_len]).items():
    start, end = (8 + header_len + offset for offset in about["data_offsets"])
    found = numpy.frombuffer(data[start:end], numpy.float32).reshape(about["shape"])
    assert (found == wanted[int(name)]).all(), name

array = numpy.load(folder / "deep.npy")
assert array.shape == tuple(3 if dim == 5 else 1 for dim in range(14)) and array.ravel().tolist() == [1, 2, 3]
print("pyarrow", pyarrow.__version__, "polars", polars.__version__, "numpy", numpy.__version__)
