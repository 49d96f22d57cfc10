"""Opens every sealed segment of a store with pyarrow and polars, and compares their rows with those that were put.

`arrow_check.py STORE EXPECTED`: EXPECTED has one JSON object per row that was put: key, column, dtype, shape and bytes.
"""

import base64
import json
import os
import sys

import numpy
import polars
import pyarrow
import pyarrow.ipc

NUMPY = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "U32": "u4", "I32": "i4", "U64": "u8", "I64": "i8",
    "F16": "f2", "F32": "f4", "F64": "f8", "BF16": "u2", "C64": "f4",
}  # fmt: skip


def key_of(key):
    return key.hex() if isinstance(key, bytes) else key


def storage(type):
    return type.storage_type if isinstance(type, pyarrow.BaseExtensionType) else type


def main(store, expected_path):
    expected = {}
    for line in open(expected_path, encoding="utf-8"):
        row = json.loads(line)
        expected[(row["key"], row["column"])] = row
    seen = set()
    extension_types = 0
    for name in sorted(os.listdir(os.path.join(store, "segments"))):
        if not name.endswith(".arrow"):
            continue
        path = os.path.join(store, "segments", name)
        table = pyarrow.ipc.open_file(pyarrow.memory_map(path)).read_all()
        table.validate(full=True)
        keys = [key_of(key) for key in table.column("key").to_pylist()]
        # polars: "not yet implemented: Cannot read zero sized arrays from IPC".
        zero_sized = any(pyarrow.types.is_fixed_size_list(t) and t.list_size == 0 for t in map(storage, table.schema.types))
        frame = None if zero_sized else polars.read_ipc(path)
        if frame is not None:
            assert [key_of(key) for key in frame["key"].to_list()] == keys, name
        for column in [column for column in table.column_names if column.startswith("value")]:
            field = table.schema.field(column)
            whole = table.column(column).combine_chunks()
            kind = storage(field.type)
            if isinstance(field.type, pyarrow.FixedShapeTensorType):
                extension_types += 1
                arrays = list(whole.to_numpy_ndarray())
            elif pyarrow.types.is_fixed_size_list(kind):
                flat = whole.values.to_numpy(zero_copy_only=False)
                arrays = list(flat.reshape(len(keys), -1)) if len(flat) else [flat] * len(keys)
            elif pyarrow.types.is_struct(kind):
                # Tensors whose shapes differ. Older versions of pyarrow do not know the extension type.
                whole = whole if whole.type == kind else whole.storage
                arrays = [numpy.asarray(row["data"]) for row in whole.to_pylist()]
            else:
                arrays = None
            rows = None if frame is None or pyarrow.types.is_struct(kind) else frame[column].to_list()
            for at, key in enumerate(keys):
                row = expected.get((key, column))
                if row is None:
                    continue
                seen.add((key, column))
                if arrays is None:
                    value = whole[at].as_py()
                    value = base64.b64encode(value).decode() if isinstance(value, bytes) else value
                    assert value == row["scalar"], (name, key, column)
                    other = rows[at]
                    assert (base64.b64encode(other).decode() if isinstance(other, bytes) else other) == row["scalar"]
                    continue
                data = base64.b64decode(row["data"])
                wanted = numpy.frombuffer(data, NUMPY.get(row["dtype"], "u1"))
                shape = row["shape"] + [2] if row["dtype"] == "C64" else row["shape"]
                array = numpy.asarray(arrays[at], dtype=wanted.dtype)
                assert array.tobytes() == wanted.tobytes(), (name, key, column, array, wanted)
                if isinstance(field.type, pyarrow.FixedShapeTensorType):
                    assert list(array.shape) == shape, (name, key, column, array.shape, shape)
                if rows is not None:
                    flat = numpy.asarray(rows[at], dtype=wanted.dtype).reshape(-1)
                    assert numpy.array_equal(flat, wanted, equal_nan=wanted.dtype.kind == "f"), (name, key, column)
    assert seen == set(expected), f"not seen: {sorted(set(expected) - seen)[:5]}"
    assert extension_types > 0, "pyarrow saw no fixed_shape_tensor"
    print(f"{len(seen)} values seen alike by pyarrow {pyarrow.__version__} and polars {polars.__version__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
