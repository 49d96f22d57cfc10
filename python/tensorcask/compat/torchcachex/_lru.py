"""A mapping of bounded size that discards the item that was used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from typing import Any


class LRU(MutableMapping[str, Any]):
    """Holds at most `maxsize` items; none if `maxsize` is 0. Not safe for several threads without a lock."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self._items: OrderedDict[str, Any] = OrderedDict()

    @property
    def currsize(self) -> int:
        """The number of items."""
        return len(self._items)

    def __getitem__(self, key: str) -> Any:
        value = self._items[key]
        self._items.move_to_end(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._items[key] = value
        self._items.move_to_end(key)
        while len(self._items) > max(self.maxsize, 0):
            self._items.popitem(last=False)

    def __delitem__(self, key: str) -> None:
        del self._items[key]

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"LRU({len(self._items)} of {self.maxsize} items)"
