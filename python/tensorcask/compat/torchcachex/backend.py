"""The cache of one module: values under text keys, in memory and in a tensorcask store."""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, MutableMapping, Sequence, Set
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..._errors import InvalidError, TensorcaskError, TensorcaskWarning
from ._lru import LRU
from ._pending import PendingWrites
from ._schema import OutputSchema
from ._segments import SegmentStore, former_segments
from .utils import map_tensors

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

logger = logging.getLogger(__name__)


class ArrowIPCCacheBackend:
    """The cached outputs of one module, one value a sample, under text keys.

    A value is a tensor, a plain value (None, bool, int, float, str, bytes), or a dict, list or tuple of such. Values
    need not have the same structure or shape. Lookups go to an LRU cache, then to values that wait to be written, then
    to the store in `cache_dir/module_id`. Rows that other processes have flushed are found by the next lookup. Threads
    may share a backend; a forked child, or a process that a backend is pickled to, writes with a handle of its own.

    Each flush writes one segment of the store, an Arrow IPC file with a checksum for each row. It has a second name of
    the form `segments/segment_000000.arrow`, a symbolic link, under which other programs may look for it.

    Args:
        cache_dir: the folder of all caches.
        module_id: the name of the module's folder in it. Change it when the module changes.
        lru_size: the number of values in the LRU cache; 0 turns it off.
        async_write: whether threads write, so that `put_batch` does not wait for the disk.
        max_workers: the number of these threads. The order of puts is kept.
        flush_every: the number of pending values after which they are written and flushed.
        writer_rank: the rank that writes. Others read the store, and keep what they put in the LRU cache.
        current_rank: the rank of this process; by default the environment variable `RANK`, or 0.

    Attributes:
        cache_dir: the folder of the module, a `Path`.
        segments_dir: its folder of segments.
        schema_path: the description of the first value, `schema.json`.
        index_path: where `torchcachex` had its pickled index. Nothing is read from there or written to it.
        lru: the LRU cache, a mapping with `maxsize` and `currsize`.
        executor: the threads that write; None if `async_write` is false.

    Raises:
        InvalidError: a store cannot have this name.
        StoreIOError: the folder cannot be made or written to.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        module_id: str,
        lru_size: int = 4096,
        async_write: bool = True,
        max_workers: int = 2,
        flush_every: int = 2048,
        writer_rank: int = 0,
        current_rank: int | None = None,
    ) -> None:
        self._arguments = (
            cache_dir, module_id, lru_size, async_write, max_workers, flush_every, writer_rank, current_rank,
        )  # fmt: skip
        self.module_id = module_id
        self.cache_dir = Path(cache_dir) / module_id
        self.segments_dir = self.cache_dir / "segments"
        self.index_path = self.cache_dir / "index.pkl"
        self.schema_path = self.cache_dir / "schema.json"
        self.async_write = bool(async_write)
        self.flush_every = int(flush_every)
        self.writer_rank = int(writer_rank)
        self.current_rank = int(os.environ.get("RANK", "0") if current_rank is None else current_rank)
        self.lru_enabled = lru_size > 0
        self.lru: MutableMapping[str, Any] = LRU(lru_size) if lru_size > 0 else {}
        self._lru_lock = threading.RLock()
        self._schema = OutputSchema.load(self.schema_path)
        self._store = SegmentStore(self.cache_dir.parent, self.cache_dir.name, creates=self._writes)
        self._pending = PendingWrites(self._store, self.flush_every, max_workers if async_write and self._writes else 0)
        self._begin()
        with contextlib.suppress(OSError):
            # Ranks that only read may not be allowed to make it.
            self.segments_dir.mkdir(parents=True, exist_ok=True)
        if self._writes:
            self._mention_former_segments()

    def _begin(self) -> None:
        """What each process that uses the backend does once."""
        self._process = os.getpid()
        # Unlike `atexit`, it runs at the end of child processes too.
        self._finalizer = Finalize(self, _close_at_exit, args=(self._pending, self.cache_dir), exitpriority=10)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            self._lru_lock = threading.RLock()
            self._begin()

    @property
    def _writes(self) -> bool:
        return self.current_rank == self.writer_rank

    @property
    def executor(self) -> ThreadPoolExecutor | None:
        """The threads that write."""
        return self._pending.executor

    @property
    def schema(self) -> Any:
        """The schema of the first value as a `pyarrow.Schema`; None before the first put."""
        return None if self._schema is None else self._schema.to_arrow()

    @property
    def output_structure(self) -> str | None:
        """`"tensor"`, `"dict"`, `"tuple"`, `"list"` or `"blob"`, of the first value; None before the first put."""
        return None if self._schema is None else self._schema.output_structure

    @property
    def index(self) -> Set[str]:
        """The keys in the store. Where their rows lie is known to the store only."""
        return StoredKeys(self._store)

    def get_batch(
        self, keys: Sequence[Any], map_location: str | torch.device = "cpu"
    ) -> tuple[list[Any | None], list[int]]:
        """Looks up values.

        Args:
            keys: texts or integers; an integer is the key of its decimal digits.
            map_location: the device of the tensors.

        Returns:
            The value of each key, None where it is missing, and the positions of the missing ones. The values are
            copies: changing them changes nothing in the cache.

        Raises:
            CorruptError: a row is damaged. Damage is never a miss.
        """
        self._check_process()
        names = [key_text(key) for key in keys]
        with self._lru_lock:
            found = [self.lru.get(name) for name in names] if self.lru_enabled else [None] * len(names)
        copy = operator.methodcaller("to", map_location, copy=True)
        results = [None if value is None else map_tensors(value, copy) for value in found]
        rest = list(dict.fromkeys(name for name, value in zip(names, found, strict=True) if value is None))
        if rest:
            values = self._read(rest)
            if torch.device(map_location).type != "cpu":
                values = [map_tensors(value, operator.methodcaller("to", map_location)) for value in values]
            read = dict(zip(rest, values, strict=True))
            results = [read[name] if value is None else value for name, value in zip(names, results, strict=True)]
        return results, [at for at, value in enumerate(results) if value is None]

    def _read(self, names: list[str]) -> list[Any | None]:
        values = [None if value is None else map_tensors(value, torch.clone) for value in self._pending.get(names)]
        absent = [at for at, value in enumerate(values) if value is None]
        for at, value in zip(absent, self._store.read([names[at] for at in absent]), strict=True):
            values[at] = value
        if self.lru_enabled:
            with self._lru_lock:
                for name, value in zip(names, values, strict=True):
                    if value is not None:
                        self.lru[name] = map_tensors(value, torch.clone)
        return values

    def put_batch(self, items: Mapping[Any, Any]) -> None:
        """Caches values under their keys, in place of those that the keys had.

        The values are copied, so that the caller may change them afterwards. They are found by `get_batch` at once, and
        are on disk after `flush`.

        Raises:
            InvalidError: a key is neither a text nor an integer.
            StoreIOError: without `async_write`, the disk refused pending values. With it that is a warning, and `flush`
                raises.
        """
        if not items:
            return
        self._check_process()
        values = {key_text(key): map_tensors(value, _snapshot) for key, value in items.items()}
        if self._schema is None:
            self._schema = OutputSchema.of(next(iter(values.values())))
            if self._writes:
                self._schema.save(self.schema_path)
        if self.lru_enabled:
            with self._lru_lock:
                self.lru.update(values)
        if self._writes:
            self._pending.add(values)

    def flush(self) -> None:
        """Returns when everything that was put is on disk. Does nothing on ranks that do not write.

        Raises:
            StoreIOError: the disk refused values, now or in a thread since the last flush.
        """
        if self._writes:
            self._check_process()
            self._pending.flush()

    def close(self) -> None:
        """Flushes and closes the store. A closed backend cannot be used."""
        self._finalizer.cancel()
        self._pending.close()

    def __enter__(self) -> ArrowIPCCacheBackend:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> ArrowIPCCacheBackend:
        # A copy of a model caches in the same place, as a copy of a file object would write to the same file.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        self.flush()
        return (type(self), self._arguments)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self.cache_dir)!r}>"

    def _mention_former_segments(self) -> None:
        former = len(former_segments(self.segments_dir))
        if former and not len(self._store):
            warnings.warn(
                f"{self.cache_dir} holds {former} segments of torchcachex, which are not read: bring them over with "
                f"`tensorcask import-torchcachex {self.cache_dir}`", TensorcaskWarning, stacklevel=3,
            )  # fmt: skip


class StoredKeys(Set[str]):
    """The keys of a store, as a set."""

    def __init__(self, store: SegmentStore) -> None:
        self._store = store

    @classmethod
    def _from_iterable(cls, keys: Any) -> set[str]:  # type: ignore[override]
        return set(keys)

    def __contains__(self, key: object) -> bool:
        return key in self._store

    def __iter__(self) -> Iterator[str]:
        return iter(self._store)

    def __len__(self) -> int:
        return len(self._store)


def key_text(key: Any) -> str:
    """The text of a key: of a text itself, of an integer its digits. Elements of tensors and arrays are integers."""
    if isinstance(key, str):
        return key
    try:
        return str(operator.index(key))
    except TypeError:
        raise InvalidError(
            f"a cache id is {key!r} of type {type(key).__name__}: pass a text or an integer, the same in all runs"
        ) from None


def _snapshot(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in main memory, without gradients."""
    plain = tensor.detach()
    return plain.to("cpu", copy=True) if plain.device.type == "cpu" else plain.cpu()


def _close_at_exit(pending: PendingWrites, folder: Path) -> None:
    if not folder.exists():
        # The folder was removed, such as a temporary one. It is not made again.
        pending.discard()
    try:
        pending.close()
    except TensorcaskError as error:
        if folder.exists():
            warnings.warn(f"outputs that were pending at exit are not stored: {error}", TensorcaskWarning, stacklevel=2)
