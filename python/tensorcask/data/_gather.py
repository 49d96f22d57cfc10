"""Reads batches of rows from a store, into the memory that their next copy starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tensorcask._errors import InvalidError, MismatchError
from tensorcask.data._torch import torch
from tensorcask.data._tree import map_columns

if TYPE_CHECKING:
    from tensorcask import Store

_INT64_MAX = 2**63 - 1


class KeyList:
    """The keys of a dataset. Integers are kept as one tensor, which forked workers share without copies.

    Args:
        keys: A tensor or array of integers, or a sequence of integers, strings or byte strings.
    """

    def __init__(self, keys: Any) -> None:
        self._keys = _compact(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def at(self, indices: Sequence[int] | torch.Tensor) -> Any:
        """The keys at ``indices``, in the form that a store takes."""
        if isinstance(self._keys, torch.Tensor):
            return self._keys[torch.as_tensor(indices, dtype=torch.int64)]
        return [self._keys[index] for index in indices]

    def all(self) -> Any:
        """All keys: a tensor of integers, or a list."""
        return self._keys


def _compact(keys: Any) -> Any:
    if isinstance(keys, (str, bytes)):
        raise InvalidError(f"the keys are {keys!r}, one key: pass a list of keys")
    if hasattr(keys, "__array__") or isinstance(keys, torch.Tensor):
        array = torch.as_tensor(keys)
        if array.dim() != 1 or array.is_floating_point() or array.is_complex() or array.dtype == torch.bool:
            raise InvalidError(
                f"the keys are a {array.dtype} tensor of shape {list(array.shape)}: pass a one-dimensional tensor of "
                "integers, or a list"
            )
        if array.dtype != torch.uint64:
            return array.detach().cpu().to(torch.int64)
        keys = array.tolist()
    listed = list(keys)
    if listed and all(type(key) is int and 0 <= key <= _INT64_MAX for key in listed):
        return torch.tensor(listed, dtype=torch.int64)
    return listed


class Gather:
    """Reads the rows of a batch with one call of the store.

    Results of a worker process travel through shared memory, and copies to a GPU are made from page-locked memory. Once
    a first batch has shown the dtype and shape of a row, later ones are read into such memory directly.

    Args:
        store: The store.
        is_pinned: Whether rows are read into page-locked memory.
    """

    def __init__(self, store: Store, is_pinned: bool = False) -> None:
        self.store = store
        self._is_pinned = is_pinned
        self._example: Any = None
        self._is_alike = True

    def take(self, keys: Any) -> Any:
        """The rows of ``keys``: a tensor ``[n, …]``, a tree of such, or a list of values that differ in shape.

        Raises:
            KeyMissingError: A key is not in the store.
        """
        allocate = self._allocator()
        if allocate is None or not self._is_alike:
            return self.store.take(keys)
        if self._example is None:
            rows = self.store.take(keys)
            self._learn(rows)
            return rows
        try:
            out = map_columns(self._example, lambda column: allocate((len(keys), *column.shape[1:]), column.dtype))
            return self.store.take(keys, out=out)
        except (InvalidError, MismatchError):
            # Rows of another structure were put, or the keys are at fault; the store tells which.
            self._is_alike = False
            return self.store.take(keys)

    def _allocator(self) -> Callable[[tuple[int, ...], torch.dtype], torch.Tensor] | None:
        if torch.utils.data.get_worker_info() is not None:
            return _shared
        return _pinned if self._is_pinned else None

    def __getstate__(self) -> tuple[Any, bool]:
        return self.store, self._is_pinned

    def __setstate__(self, state: tuple[Any, bool]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _learn(self, rows: Any) -> None:
        def look(column: Any) -> Any:
            self._is_alike = self._is_alike and isinstance(column, torch.Tensor) and column.device.type == "cpu"
            return column[:0].clone() if self._is_alike else None

        example = map_columns(rows, look)
        self._example = example if self._is_alike else None


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    untyped: Any = torch.UntypedStorage
    storage = untyped._new_shared(math.prod(shape) * dtype.itemsize, device="cpu")
    empty: Any = torch.empty(0, dtype=dtype)
    shared: torch.Tensor = empty.set_(storage, 0, shape)
    return shared


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)
