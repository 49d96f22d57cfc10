"""A store of nested values under text keys, one value a key, opened when it is first used in a process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._errors import InvalidError

if TYPE_CHECKING:
    from .._native import Store


class ValueStore:
    """The store in `folder/name`.

    Writing handles create the store when they are opened; for the others a store that is not there yet has no rows.
    Misses look for what other processes have committed meanwhile. A forked child opens a handle of its own.
    """

    def __init__(self, folder: Path, name: str, *, writes: bool, **options: Any) -> None:
        self.path = folder / name
        self._folder, self._name, self._writes, self._options = folder, name, writes, options
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._process = os.getpid()
        self._closed = False
        if writes:
            self._opened()

    def _opened(self) -> Store | None:
        if self._process != os.getpid():
            self._begin_in_child()
        store = self._store
        if store is not None:
            return store
        with self._lock:
            if self._closed:
                raise InvalidError(f"the cache in {self.path} is closed: make another one")
            if self._store is None and (self._writes or (self.path / "store.json").exists()):
                self._store = self._open("a" if self._writes else "r")
            return self._store

    def _open(self, mode: Literal["r", "a"]) -> Store:
        from .._native import open as open_store

        # Every miss looks for new rows of other writers.
        return open_store(self._folder, self._name, mode=mode, refresh_interval_s=0.0, **self._options)

    def _begin_in_child(self) -> None:
        former, self._store = self._store, None
        self._lock, self._process = threading.Lock(), os.getpid()
        if former is not None:
            # Nothing of the parent is ended by this.
            former.close()

    def read(self, keys: list[str]) -> list[Any | None]:
        """The value of each key; None for keys that are missing."""
        store = self._opened()
        if store is None or not keys:
            return [None] * len(keys)
        rows, found = store.get(keys)
        values = split(rows, len(keys))
        return [value if there else None for value, there in zip(values, found.tolist(), strict=True)]

    def write(self, items: Mapping[str, Any]) -> dict[str, InvalidError]:
        """Puts the items. Returns those of a type that a store does not hold, each with the reason."""
        store = self._opened()
        return {} if store is None else put_values(store, items)

    def put_rows(self, keys: list[str], rows: Any) -> None:
        """Puts the rows of a tensor."""
        store = self._opened()
        if store is not None:
            store.put(keys, rows)

    def flush(self) -> None:
        """Returns when all that was put is on disk."""
        if self._store is not None and self._process == os.getpid():
            self._store.flush()

    def close(self) -> None:
        """Flushes and closes."""
        with self._lock:
            store, self._store, self._closed = self._store, None, True
        if store is not None:
            store.close()

    def __len__(self) -> int:
        store = self._opened()
        return 0 if store is None else len(store)

    def __contains__(self, key: object) -> bool:
        store = self._opened()
        return store is not None and isinstance(key, str) and key in store

    def __iter__(self) -> Iterator[str]:
        store = self._opened()
        return iter(()) if store is None else iter(store)


def put_values(store: Store, items: Mapping[str, Any]) -> dict[str, InvalidError]:
    """Puts the items. Returns those of a type that a store does not hold, each with the reason."""
    if not items:
        return {}
    try:
        store.put(list(items), list(items.values()))
    except InvalidError as error:
        if len(items) == 1:
            return {next(iter(items)): error}
    else:
        return {}
    refused: dict[str, InvalidError] = {}
    for key, value in items.items():
        refused |= put_values(store, {key: value})
    return refused


def split(rows: Any, count: int) -> list[Any]:
    """The value of each of `count` keys in rows of a store: arrays by their first dimension, lists by item."""
    if rows is None:
        return [None] * count
    if isinstance(rows, list):
        return rows
    if hasattr(rows, "unbind"):
        return list(rows.unbind(0))
    if isinstance(rows, dict):
        columns = {name: split(item, count) for name, item in rows.items()}
        kind = type(rows)
        maps = ({name: column[at] for name, column in columns.items()} for at in range(count))
        return list(maps) if kind is dict else [kind(**fields) for fields in maps]
    if isinstance(rows, tuple):
        items = [split(item, count) for item in rows]
        make = type(rows)._make if hasattr(rows, "_make") else tuple
        return [make(column[at] for column in items) for at in range(count)]
    if hasattr(rows, "__dataclass_fields__"):
        columns = {name: split(getattr(rows, name), count) for name in rows.__dataclass_fields__}
        return [type(rows)(**{name: column[at] for name, column in columns.items()}) for at in range(count)]
    return [rows[at] for at in range(count)]
