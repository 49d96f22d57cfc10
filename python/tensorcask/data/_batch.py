"""A batch of samples that was read with one gather, and how it is collated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

from tensorcask.data._torch import torch
from tensorcask.data._tree import map_columns, row_of


class GatheredBatch(Sequence[Any]):
    """The samples of one batch, whose columns are already collated.

    It behaves as the list of samples that a dataset without ``__getitems__`` would give, so functions for
    ``collate_fn`` work on it. ``collated`` returns the columns without a copy. ``default_collate`` of PyTorch calls it,
    since the first sample is of a type that is registered for it.

    Args:
        columns: Batches of rows: tensors ``[n, …]``, lists of ``n`` values, or trees of these.
        length: The number of samples, ``n``.
        is_tuple: Whether a sample is a tuple with one item per column. Otherwise there is one column.
    """

    __slots__ = ("_columns", "_is_tuple", "_length")

    def __init__(self, columns: tuple[Any, ...], length: int, is_tuple: bool) -> None:
        self._columns = columns
        self._length = length
        self._is_tuple = is_tuple

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._sample(at) for at in range(*index.indices(self._length))]
        at = index + self._length if index < 0 else index
        if not 0 <= at < self._length:
            raise IndexError(f"sample {index} of a batch of {self._length}")
        return _registered(self._sample(at))

    def __iter__(self) -> Iterator[Any]:
        return (self._sample(at) for at in range(self._length))

    def _sample(self, at: int) -> Any:
        if self._is_tuple:
            return tuple(row_of(column, at) for column in self._columns)
        return row_of(self._columns[0], at)

    def collated(self) -> Any:
        """The batch as ``default_collate`` forms it: the column, or a list of columns if samples are tuples.

        Columns that are lists, such as rows of several shapes, are collated as ``default_collate`` does.

        Raises:
            RuntimeError: Rows of several shapes do not form a tensor: pass a ``collate_fn`` that pads them.
        """
        columns = [map_columns(column, _one_column) for column in self._columns]
        return columns if self._is_tuple else columns[0]


class _Row(torch.Tensor):
    """A sample that is a tensor. Operations on it return plain tensors."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class _Mapping(dict[str, Any]):
    """A sample that is a dict."""


class _Tuple(tuple[Any, ...]):
    """A sample that is a tuple."""


def _registered(sample: Any) -> Any:
    """The sample as the same value of a type that ``default_collate`` knows to belong to a ``GatheredBatch``."""
    if isinstance(sample, torch.Tensor):
        return sample.as_subclass(_Row)
    if type(sample) is dict:
        return _Mapping(sample)
    return _Tuple(sample) if type(sample) is tuple else sample


def _one_column(column: Any) -> Any:
    if isinstance(column, torch.Tensor):
        return column
    if isinstance(column, list):
        return torch.utils.data.default_collate(column)
    return torch.as_tensor(column)


def _collate_gathered(batch: Any, *, collate_fn_map: Mapping[Any, Callable[..., Any]] | None = None) -> Any:
    if isinstance(batch, GatheredBatch):
        return batch.collated()
    # Samples of several batches, such as those that a program has put in a list of its own.
    return torch.utils.data.default_collate([_plain(sample) for sample in batch])


def _plain(sample: Any) -> Any:
    if isinstance(sample, _Row):
        return sample.as_subclass(torch.Tensor)
    if isinstance(sample, _Mapping):
        return dict(sample)
    return tuple(sample) if isinstance(sample, _Tuple) else sample


def collate(batch: Any) -> Any:
    """Collates as ``default_collate`` does, but keeps a batch that was read with one gather as it is.

    ``default_collate`` does the same. This function is for programs that name a ``collate_fn``.
    """
    return batch.collated() if isinstance(batch, GatheredBatch) else torch.utils.data.default_collate(batch)


def _register() -> None:
    # PyTorch documents this map as the way to extend ``default_collate``.
    from torch.utils.data._utils.collate import default_collate_fn_map

    for kind in (_Row, _Mapping, _Tuple):
        default_collate_fn_map[kind] = _collate_gathered


_register()
