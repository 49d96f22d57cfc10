"""Targets that are joined with the rows of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensorcask._errors import InvalidError, KeyMissingError
from tensorcask.data._gather import Gather, KeyList
from tensorcask.data._torch import torch
from tensorcask.data._tree import map_columns


class Targets:
    """One target per key.

    Args:
        source: A tensor, array or sequence with one target per key in the order of the keys; a mapping from keys to
            targets; or a store with the targets under the same keys.
        keys: The keys of the dataset.

    Raises:
        InvalidError: The number of targets is not that of the keys.
        KeyMissingError: A mapping lacks keys.
    """

    def __init__(self, source: Any, keys: KeyList) -> None:
        self._gather: Gather | None = None
        self._values: Any = None
        if hasattr(source, "take") and hasattr(source, "module_id"):
            self._gather = Gather(source)
        elif isinstance(source, Mapping):
            self._values = _listed(_of_mapping(source, keys))
        else:
            self._values = _listed(source)
            if len(self._values) != len(keys):
                raise InvalidError(f"there are {len(self._values)} targets for {len(keys)} keys: give one per key")

    def at(self, indices: Sequence[int], keys: Any) -> Any:
        """The targets of the samples ``indices``, whose keys are ``keys``: a tensor ``[n, …]``, a tree, or a list."""
        if self._gather is not None:
            return self._gather.take(keys)
        if isinstance(self._values, list):
            return [self._values[index] for index in indices]
        at = torch.as_tensor(indices, dtype=torch.int64)
        return map_columns(self._values, lambda column: column[at])


def _of_mapping(source: Mapping[Any, Any], keys: KeyList) -> list[Any]:
    listed = keys.all().tolist() if isinstance(keys.all(), torch.Tensor) else keys.all()
    missing = [key for key in listed if key not in source]
    if missing:
        shown = ", ".join(repr(key) for key in missing[:5])
        raise KeyMissingError(f"{len(missing)} keys have no target: {shown}", missing, len(missing))
    return [source[key] for key in listed]


def _listed(values: Any) -> Any:
    """Numbers as a tensor; other values as a list."""
    if isinstance(values, torch.Tensor):
        return values.detach()
    if hasattr(values, "__array__") and getattr(values.dtype, "kind", "O") in "biufc":
        return torch.as_tensor(values)
    listed = list(values)
    for kind in (bool, int, float):
        if listed and all(type(value) is kind for value in listed):
            return torch.tensor(listed)
    if listed and all(isinstance(value, torch.Tensor) and value.shape == listed[0].shape for value in listed):
        return torch.stack(listed)
    return listed
