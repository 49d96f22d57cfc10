"""Reads of a store as operators of PyTorch, so that compiled and exported models contain them.

``register`` gives a store a name. ``torch.ops.tensorcask.gather(name, keys)`` then reads rows by key, like an embedding
whose table is on disk. ``torch.compile(fullgraph=True)`` and ``torch.export`` keep the call as one opaque operator:

    gather = tensorcask.ops.register(store, "features")
    rows = gather(keys)                  # keys [...], rows [..., *row shape] on the device of the keys

An exported program refers to the store by its name, so the process that loads it registers a store of that name first.
Needs PyTorch 2.4 or later.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensorcask._errors import InvalidError

try:
    import torch
    from torch.library import custom_op
except ImportError as error:
    raise ImportError(
        "tensorcask.ops needs PyTorch 2.4 or later: install it with `pip install tensorcask[torch]`"
    ) from error

if TYPE_CHECKING:
    from tensorcask import Store

__all__ = ["Gather", "register", "registered", "unregister"]


@dataclass(frozen=True)
class _Entry:
    """A store under a name, and what its rows look like."""

    store: Store
    shape: tuple[int, ...]
    dtype: torch.dtype


_lock = threading.Lock()
_entries: dict[str, _Entry] = {}


class Gather(torch.nn.Module):
    """Rows of a registered store by key. It has no parameters.

    Args:
        name: The name of the store.
        missing: ``"error"`` raises ``KeyMissingError`` for keys that are not in the store; ``"zeros"`` returns rows of
            zeros.
    """

    def __init__(self, name: str, missing: str = "error") -> None:
        super().__init__()
        if missing not in ("error", "zeros"):
            raise InvalidError(f'missing is {missing!r}: pass "error" or "zeros"')
        _entry(name)
        self.name = name
        self.missing = missing

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        """Rows ``[..., *row shape]`` on the device of ``keys``, an integer tensor ``[...]``."""
        if self.missing == "zeros":
            zero_filled: torch.Tensor = torch.ops.tensorcask.gather_found(self.name, keys)[0]
            return zero_filled
        rows: torch.Tensor = torch.ops.tensorcask.gather(self.name, keys)
        return rows

    def extra_repr(self) -> str:
        return f"name={self.name!r}, missing={self.missing!r}"


def register(
    store: Store,
    name: str,
    *,
    shape: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    missing: str = "error",
) -> Gather:
    """Gives ``store`` a name, under which ``torch.ops.tensorcask.gather`` reads from it.

    Compiled graphs contain the shape and dtype of a row, so all rows must have them. Registering a name again replaces
    its store, as long as rows of the new one have the same shape and dtype.

    Args:
        store: A store with integer keys whose rows are single tensors, opened with ``format="torch"``.
        name: The name.
        shape: The shape of a row; by default that of the first key's row.
        dtype: The dtype of a row; likewise.
        missing: As for ``Gather``.

    Returns:
        A module that reads from the store.

    Raises:
        InvalidError: The store is empty and ``shape`` or ``dtype`` is not given; its rows are no tensors or differ from
            ``shape`` and ``dtype``; or the name belongs to a store with other rows.
    """
    entry = _described(store, name, shape, dtype)
    with _lock:
        known = _entries.get(name)
        if known is not None and (known.shape, known.dtype) != (entry.shape, entry.dtype):
            raise InvalidError(
                f"the name {name!r} belongs to a store with {known.dtype} rows of shape {list(known.shape)}, and "
                f"{store.path} has {entry.dtype} rows of shape {list(entry.shape)}: use another name, or unregister it"
            )
        _entries[name] = entry
    return Gather(name, missing)


def unregister(name: str) -> None:
    """Forgets a name. The store stays open.

    Raises:
        InvalidError: No store has the name.
    """
    with _lock:
        if _entries.pop(name, None) is None:
            raise InvalidError(_unknown(name))


def registered() -> dict[str, Store]:
    """The registered stores by name."""
    with _lock:
        return {name: entry.store for name, entry in _entries.items()}


def _described(store: Store, name: str, shape: Sequence[int] | None, dtype: torch.dtype | None) -> _Entry:
    row: Any = None
    for key in store:
        if not isinstance(key, int):
            raise InvalidError(
                f"the keys of {store.path} are of type {type(key).__name__}: operators take integer keys"
            )
        row = store[key]
        break
    if row is None:
        if shape is None or dtype is None:
            raise InvalidError(
                f"the store {store.path} is empty: pass the shape and dtype of its rows to register {name!r}"
            )
        return _Entry(store, tuple(shape), dtype)
    if not isinstance(row, torch.Tensor):
        raise InvalidError(
            f"the rows of {store.path} are of type {type(row).__name__}: operators read rows that are single tensors, "
            'from a store opened with format="torch"'
        )
    wanted = (tuple(row.shape) if shape is None else tuple(shape), row.dtype if dtype is None else dtype)
    if wanted != (tuple(row.shape), row.dtype):
        raise InvalidError(
            f"the store {store.path} has {row.dtype} rows of shape {list(row.shape)}, not {wanted[1]} rows of shape "
            f"{list(wanted[0])}"
        )
    return _Entry(store, *wanted)


def _entry(name: str) -> _Entry:
    with _lock:
        entry = _entries.get(name)
    if entry is None:
        raise InvalidError(_unknown(name))
    return entry


def _unknown(name: str) -> str:
    known = ", ".join(map(repr, sorted(_entries))) or "none"
    return f"no store is registered under the name {name!r} (registered: {known}): call tensorcask.ops.register first"


def _placed(entry: _Entry, rows: Any, keys: torch.Tensor) -> torch.Tensor:
    """Rows ``[n, …]`` as ``[..., …]`` on the device of ``keys``, checked against what compiled graphs were told."""
    if not isinstance(rows, torch.Tensor) or rows.dtype != entry.dtype or tuple(rows.shape[1:]) != entry.shape:
        raise InvalidError(
            f"rows of {entry.store.path} are not {entry.dtype} rows of shape {list(entry.shape)}, as registered: "
            "put rows of one shape and dtype into a store that operators read"
        )
    return rows.reshape(*keys.shape, *entry.shape).to(keys.device)


def _empty(entry: _Entry, keys: torch.Tensor) -> torch.Tensor:
    return keys.new_empty((*keys.shape, *entry.shape), dtype=entry.dtype)


def _host(keys: torch.Tensor) -> torch.Tensor:
    return keys.detach().flatten().to("cpu", torch.int64).contiguous()


@custom_op("tensorcask::gather", mutates_args=())
def _gather(name: str, keys: torch.Tensor) -> torch.Tensor:
    entry = _entry(name)
    if keys.numel() == 0:
        return _empty(entry, keys)
    return _placed(entry, entry.store.take(_host(keys)), keys)


@_gather.register_fake
def _(name: str, keys: torch.Tensor) -> torch.Tensor:
    return _empty(_entry(name), keys)


@custom_op("tensorcask::gather_found", mutates_args=())
def _gather_found(name: str, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    entry = _entry(name)
    if keys.numel() == 0:
        return _empty(entry, keys), keys.new_empty(keys.shape, dtype=torch.bool)
    rows, found = entry.store.get(_host(keys))
    if isinstance(rows, list) and not bool(found.any()):
        # An empty store does not know its rows.
        return _empty(entry, keys).zero_(), keys.new_zeros(keys.shape, dtype=torch.bool)
    return _placed(entry, rows, keys), found.reshape(keys.shape).to(keys.device)


@_gather_found.register_fake
def _(name: str, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty(_entry(name), keys), keys.new_empty(keys.shape, dtype=torch.bool)
