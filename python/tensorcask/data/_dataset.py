"""A store as a map-style dataset of PyTorch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tensorcask._errors import InvalidError
from tensorcask.data._batch import GatheredBatch
from tensorcask.data._gather import Gather, KeyList
from tensorcask.data._targets import Targets
from tensorcask.data._torch import torch
from tensorcask.data._tree import row_of

if TYPE_CHECKING:
    from tensorcask import Store


class StoreDataset(torch.utils.data.Dataset[Any]):
    """Rows of a store as samples of a ``torch.utils.data.DataLoader``.

    ``DataLoader(dataset, batch_size=256, shuffle=True)`` gives batches ``[256, …]``, each read with one gather.
    Samplers, worker processes (forked or spawned), ``pin_memory`` and ``torch.utils.data.Subset`` work as with any
    dataset. A worker opens the store by itself; with workers, open the store without a GPU ``device``.

    A sample is the row alone, or a tuple ``(row, target)``, ``(row, key)`` or ``(row, target, key)``.

    Args:
        store: The store, as ``tensorcask.open`` returns it.
        keys: The keys in the order of the samples: a tensor or array of integers, or a sequence of integers, strings or
            byte strings. By default the keys that the store has now; keys that are put later are not included.
        targets: One target per key: a tensor, array or sequence in the order of the keys, a mapping from keys to
            targets, or a store with the targets under the same keys.
        transform: Applied to each row. It costs one call of Python per sample and a copy of the batch.
        target_transform: Applied to each target.
        batch_transform: Applied to the rows ``[n, …]`` of a batch, before they are split into samples.
        return_keys: Whether samples contain their keys: integers as an ``int64`` tensor, others as a list.
        missing: What happens with keys that are not in the store. ``"error"`` raises ``KeyMissingError`` when they are
            read; ``"drop"`` leaves them and their targets out at construction.

    Raises:
        InvalidError: The keys are no list of keys, or the number of targets is not that of the keys.
    """

    def __init__(
        self,
        store: Store,
        keys: Any = None,
        *,
        targets: Any = None,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        batch_transform: Callable[[Any], Any] | None = None,
        return_keys: bool = False,
        missing: Literal["error", "drop"] = "error",
    ) -> None:
        if missing not in ("error", "drop"):
            raise InvalidError(f'missing is {missing!r}: pass "error" or "drop"')
        self._gather = Gather(store)
        self._keys = KeyList(store.keys() if keys is None else keys)
        self._targets = None if targets is None else Targets(targets, self._keys)
        self._transform = transform
        self._target_transform = target_transform
        self._batch_transform = batch_transform
        self._return_keys = return_keys
        # Positions among the keys, of the samples that are left; ``None`` for all.
        self._kept: torch.Tensor | None = None
        if missing == "drop" and len(self._keys):
            found = torch.as_tensor(store.contains(self._keys.all()))
            self._kept = None if bool(found.all()) else found.nonzero().flatten()

    @property
    def store(self) -> Store:
        """The store that rows are read from."""
        return self._gather.store

    @property
    def keys(self) -> Any:
        """The keys of the samples, in order: an ``int64`` tensor, or a list."""
        return self._keys.all() if self._kept is None else self._keys.at(self._kept)

    def __len__(self) -> int:
        return len(self._keys) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> Any:
        """Sample ``index``.

        Raises:
            IndexError: There are fewer samples.
            KeyMissingError: The key is not in the store.
        """
        at = operator.index(index)
        if not -len(self) <= at < len(self):
            raise IndexError(f"sample {at} of a dataset of {len(self)}")
        batch = self.__getitems__([at % len(self)])
        return next(iter(batch))

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Any]:
        """The samples ``indices``, read with one gather. ``DataLoader`` calls it once a batch.

        Raises:
            KeyMissingError: Keys are not in the store.
        """
        positions = indices if self._kept is None else self._kept[torch.as_tensor(indices)].tolist()
        keys = self._keys.at(positions)
        rows = self._gather.take(keys)
        if self._batch_transform is not None:
            rows = self._batch_transform(rows)
        if self._transform is not None:
            rows = [self._transform(row_of(rows, at)) for at in range(len(indices))]
        columns = [rows]
        if self._targets is not None:
            targets = self._targets.at(positions, keys)
            if self._target_transform is not None:
                targets = [self._target_transform(row_of(targets, at)) for at in range(len(indices))]
            columns.append(targets)
        if self._return_keys:
            columns.append(keys)
        return GatheredBatch(tuple(columns), len(indices), is_tuple=len(columns) > 1)
