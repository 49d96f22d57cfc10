"""The contenders: each keeps the same rows under integer keys, and reads batches of them as tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from _rows import parts

Read = Callable[[torch.Tensor], torch.Tensor]
Open = Callable[[Path], Read]


@dataclass
class Peer:
    """One way to keep rows.

    `load` writes all rows to a folder that exists. `open` returns a function that reads the rows of a batch of
    numbers. Both import what they need. `most_rows` limits contenders that would take hours.
    """

    name: str
    package: str
    load: Callable[[Path, torch.Tensor], None]
    open: Open
    most_rows: int | None = None
    note: str = ""


def _stacked(values: list[bytes], width: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(b"".join(values)), dtype=torch.float32).view(len(values), width)


def tensorcask(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        import tensorcask as tc

        with tc.open(folder, "rows") as store:
            for start, stop in parts(len(rows)):
                store.put(torch.arange(start, stop), rows[start:stop])

    def open_(folder: Path) -> Read:
        import tensorcask as tc

        store = tc.open(folder, "rows", mode="r")
        return store.take

    return Peer("tensorcask", "tensorcask", load, open_)


def memmap(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        out = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=np.float32, shape=tuple(rows.shape))
        for start, stop in parts(len(rows)):
            out[start:stop] = rows[start:stop].numpy()
        out.flush()

    def open_(folder: Path) -> Read:
        mapped = np.load(folder / "rows.npy", mmap_mode="r")
        return lambda numbers: torch.from_numpy(np.asarray(mapped[numbers.numpy()]))

    return Peer("np.memmap, fancy indexing", "numpy", load, open_, note="no keys: row numbers only")


def datasets(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        from datasets import Features, Sequence, Value
        from datasets.arrow_writer import ArrowWriter

        features = Features({"row": Sequence(Value("float32"), length=width)})
        with ArrowWriter(features=features, path=str(folder / "rows.arrow")) as writer:
            for start, stop in parts(len(rows)):
                writer.write_batch({"row": rows[start:stop].numpy()})
            writer.finalize()

    def open_(folder: Path) -> Read:
        from datasets import Dataset

        dataset = Dataset.from_file(str(folder / "rows.arrow")).with_format("torch")
        return lambda numbers: dataset[numbers.tolist()]["row"]

    return Peer("datasets (torch format)", "datasets", load, open_, note="no keys: row numbers only")


def lmdb(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        import lmdb

        size = rows.numel() * 4 * 3 + (64 << 20)
        with lmdb.open(str(folder), map_size=size, writemap=True, sync=False) as environment:
            for start, stop in parts(len(rows)):
                with environment.begin(write=True) as transaction:
                    for number in range(start, stop):
                        transaction.put(number.to_bytes(8, "big"), rows[number].numpy().tobytes(), append=True)

    def open_(folder: Path) -> Read:
        import lmdb

        environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False)

        def read(numbers: torch.Tensor) -> torch.Tensor:
            out = np.empty((len(numbers), width), np.float32)
            with environment.begin(buffers=True) as transaction:
                for at, number in enumerate(numbers.tolist()):
                    out[at] = np.frombuffer(transaction.get(number.to_bytes(8, "big")), np.float32)
            return torch.from_numpy(out)

        return read

    return Peer("LMDB", "lmdb", load, open_)


def lance(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        import lance
        import pyarrow as pa

        schema = pa.schema({"row": pa.list_(pa.float32(), width)})

        def batches() -> object:
            for start, stop in parts(len(rows)):
                values = pa.array(rows[start:stop].reshape(-1).numpy())
                yield pa.record_batch([pa.FixedSizeListArray.from_arrays(values, width)], schema=schema)

        lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(folder / "rows.lance"))

    def open_(folder: Path) -> Read:
        import lance

        dataset = lance.dataset(str(folder / "rows.lance"))

        def read(numbers: torch.Tensor) -> torch.Tensor:
            column = dataset.take(numbers.tolist()).column("row").combine_chunks()
            return torch.from_numpy(column.flatten().to_numpy().copy()).view(len(numbers), width)

        return read

    return Peer("lance take", "pylance", load, open_, note="no keys: row numbers only")


def h5py(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        import h5py

        with h5py.File(folder / "rows.h5", "w") as file:
            dataset = file.create_dataset("rows", tuple(rows.shape), "f4")
            for start, stop in parts(len(rows)):
                dataset[start:stop] = rows[start:stop].numpy()

    def open_(folder: Path) -> Read:
        import h5py

        dataset = h5py.File(folder / "rows.h5", "r")["rows"]

        def read(numbers: torch.Tensor) -> torch.Tensor:
            # h5py takes increasing numbers only.
            order = torch.argsort(numbers)
            out = torch.empty(len(numbers), width)
            out[order] = torch.from_numpy(dataset[numbers[order].numpy()])
            return out

        return read

    return Peer("h5py", "h5py", load, open_, note="no keys: row numbers only")


def zarr(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        import zarr

        array = zarr.create_array(
            str(folder / "rows.zarr"), shape=tuple(rows.shape), dtype="f4", chunks=(64, width), compressors=None
        )
        for start, stop in parts(len(rows)):
            array[start:stop] = rows[start:stop].numpy()

    def open_(folder: Path) -> Read:
        import zarr

        array = zarr.open_array(str(folder / "rows.zarr"), mode="r")
        return lambda numbers: torch.from_numpy(np.asarray(array.oindex[numbers.numpy()]))

    return Peer("zarr, chunks of 64 rows", "zarr", load, open_, note="no keys: row numbers only")


def files(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        for number in range(len(rows)):
            torch.save(rows[number].clone(), folder / f"{number}.pt")

    def open_(folder: Path) -> Read:
        return lambda numbers: torch.stack(
            [torch.load(folder / f"{number}.pt", weights_only=True) for number in numbers.tolist()]
        )

    return Peer("a folder of .pt files", "torch", load, open_, most_rows=20_000)


def safetensors(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        from safetensors.torch import save_file

        save_file({str(number): rows[number].clone() for number in range(len(rows))}, folder / "rows.safetensors")

    def open_(folder: Path) -> Read:
        from safetensors import safe_open

        file = safe_open(folder / "rows.safetensors", "pt")
        return lambda numbers: torch.stack([file.get_tensor(str(number)) for number in numbers.tolist()])

    return Peer("safetensors, a tensor a row", "safetensors", load, open_, most_rows=100_000)


def diskcache(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        import diskcache

        with diskcache.Cache(str(folder), eviction_policy="none", size_limit=1 << 40) as cache:
            for start, stop in parts(len(rows)):
                with cache.transact():
                    for number in range(start, stop):
                        cache.set(number, rows[number].numpy().tobytes())

    def open_(folder: Path) -> Read:
        import diskcache

        cache = diskcache.Cache(str(folder), eviction_policy="none", size_limit=1 << 40)
        return lambda numbers: _stacked([cache[number] for number in numbers.tolist()], width)

    return Peer("diskcache", "diskcache", load, open_)


def torchcachex(width: int) -> Peer:
    def load(folder: Path, rows: torch.Tensor) -> None:
        from torchcachex import ArrowIPCCacheBackend

        backend = ArrowIPCCacheBackend(str(folder), "rows", async_write=False)
        for start, stop in parts(len(rows)):
            backend.put_batch({str(number): rows[number] for number in range(start, stop)})
        backend.flush()

    def open_(folder: Path) -> Read:
        from torchcachex import ArrowIPCCacheBackend

        backend = ArrowIPCCacheBackend(str(folder), "rows", async_write=False)
        return lambda numbers: torch.stack(backend.get_batch([str(number) for number in numbers.tolist()])[0])

    return Peer("torchcachex", "torchcachex", load, open_)


class _Number(torch.nn.Module):
    """Returns the rows whose numbers are the inputs."""

    def __init__(self, rows: torch.Tensor | None) -> None:
        super().__init__()
        self.given = (rows,)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        if self.given[0] is None:
            raise SystemExit("torchcache computed a row that it should have found")
        return self.given[0][numbers[:, 0].long()]


def torchcache(width: int) -> Peer:
    def cached(folder: Path, rows: torch.Tensor | None) -> torch.nn.Module:
        from torchcache import torchcache

        decorate = torchcache(persistent=True, persistent_cache_dir=str(folder), persistent_module_hash="rows")
        return decorate(_Number)(rows)

    def inputs(numbers: torch.Tensor) -> torch.Tensor:
        return numbers.float()[:, None].expand(-1, 2).contiguous()

    def load(folder: Path, rows: torch.Tensor) -> None:
        module = cached(folder, rows)
        for start, stop in parts(len(rows), 256):
            module(inputs(torch.arange(start, stop)))

    def open_(folder: Path) -> Read:
        module = cached(folder, None)
        return lambda numbers: module(inputs(numbers))

    return Peer("torchcache", "torchcache", load, open_, most_rows=20_000, note="by content; later reads in memory")


ALL = (tensorcask, memmap, lmdb, lance, h5py, zarr, safetensors, diskcache, files, datasets, torchcachex, torchcache)


def disk_bytes(folder: Path) -> int:
    """The blocks that the files of a folder take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
