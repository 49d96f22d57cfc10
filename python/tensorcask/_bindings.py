"""Detects that a name, a closure variable or a submodule was rebound since it was described."""

from __future__ import annotations

from types import CellType
from typing import Any

_MISSING = object()


class Bindings:
    """The objects that were found under the names that a description depends on. A check costs 50 ns a name."""

    def __init__(self) -> None:
        self._names: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[CellType, Any]] = []
        self._items: list[tuple[dict[Any, Any], dict[Any, Any]]] = []

    def name(self, owner: dict[str, Any], name: str) -> None:
        """Watches one name of a namespace."""
        self._names.append((owner, name, owner.get(name, _MISSING)))

    def cell(self, cell: CellType) -> None:
        """Watches a closure variable."""
        self._cells.append((cell, content(cell)))

    def items(self, owner: dict[Any, Any]) -> None:
        """Watches all items of a dict, such as the children of a module."""
        self._items.append((owner, dict(owner)))

    def changed(self) -> bool:
        """Whether any of them is another object than before."""
        for owner, name, value in self._names:
            if owner.get(name, _MISSING) is not value:
                return True
        for cell, value in self._cells:
            if content(cell) is not value:
                return True
        return any(owner != items for owner, items in self._items)


def content(cell: CellType) -> Any:
    """The value of a closure variable, or a marker if it is not bound yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def is_bound(value: Any) -> bool:
    """Whether `content` found a value."""
    return value is not _MISSING
