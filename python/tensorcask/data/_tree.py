"""Batches of rows, whose columns may be nested in dicts, tuples and dataclasses.

A column is a tensor or array whose first dimension is the batch, or a list with one item per row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


def map_columns(rows: Any, change: Callable[[Any], Any]) -> Any:
    """Applies ``change`` to each column of ``rows``. Containers keep their type; ``None`` stays ``None``."""
    if rows is None:
        return None
    if isinstance(rows, Mapping):
        changed = {name: map_columns(column, change) for name, column in rows.items()}
        return changed if type(rows) is dict else type(rows)(**changed)
    if dataclasses.is_dataclass(rows) and not isinstance(rows, type):
        names = [field.name for field in dataclasses.fields(rows)]
        return dataclasses.replace(rows, **{name: map_columns(getattr(rows, name), change) for name in names})
    if isinstance(rows, tuple):
        columns = [map_columns(column, change) for column in rows]
        return type(rows)(*columns) if hasattr(rows, "_fields") else tuple(columns)
    return change(rows)


def row_of(rows: Any, index: int) -> Any:
    """Row ``index``: each column without its first dimension."""
    return map_columns(rows, lambda column: column[index])

