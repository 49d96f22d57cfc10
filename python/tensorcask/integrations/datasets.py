"""Rows of a store as a column of a dataset of Hugging Face's ``datasets``.

    dataset = dataset.with_transform(tensorcask.integrations.datasets.features(store, key="id"))
    dataset[:32]["features"]             # a tensor [32, …], read with one gather

The rows stay in the store; the dataset's own files do not grow. The transform works in worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensorcask._errors import InvalidError

if TYPE_CHECKING:
    from tensorcask import Store

__all__ = ["Features", "features"]


class Features:
    """Adds rows of a store to batches of a dataset. ``features`` makes it, and describes the arguments."""

    def __init__(
        self,
        store: Store,
        key: str | Callable[[Mapping[str, Any]], Any],
        column: str,
        columns: Sequence[str] | None,
        then: Callable[[dict[str, Any]], dict[str, Any]] | None,
    ) -> None:
        self._store = store
        self._key = key
        self._column = column
        self._columns = None if columns is None else list(columns)
        self._then = then

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the rows of its keys.

        Raises:
            InvalidError: The batch lacks the column of keys, or has a column of the new one's name.
            KeyMissingError: Keys are not in the store.
        """
        if self._column in batch:
            raise InvalidError(f"the dataset has a column {self._column!r} already: pass another name as `column`")
        kept = dict(batch) if self._columns is None else {name: _column(batch, name) for name in self._columns}
        keys = _column(batch, self._key) if isinstance(self._key, str) else self._key(batch)
        kept[self._column] = self._store.take(keys if hasattr(keys, "__array__") else list(keys))
        return kept if self._then is None else self._then(kept)


def features(
    store: Store,
    key: str | Callable[[Mapping[str, Any]], Any] = "id",
    *,
    column: str = "features",
    columns: Sequence[str] | None = None,
    then: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Features:
    """A transform for ``Dataset.with_transform`` or ``set_transform`` that adds rows of ``store`` by key.

    Args:
        store: The store, as ``tensorcask.open`` returns it.
        key: The column with the keys, or a function from a batch of columns to its keys.
        column: The name of the new column. It holds a tensor ``[n, …]``, or what ``Store.take`` returns for its rows.
        columns: The columns that are kept beside it; by default all.
        then: A transform that is applied afterwards.

    Returns:
        A callable from a batch (a dict of columns) to a batch.
    """
    return Features(store, key, column, columns, then)


def _column(batch: Mapping[str, Any], name: str) -> Any:
    if name not in batch:
        raise InvalidError(f"the dataset has no column {name!r}, but {', '.join(map(repr, batch))}")
    return batch[name]
