"""Takes batches of inputs and outputs apart, sample by sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch

from ..._errors import InvalidError
from .utils import map_tensors, rebuilt

ListKind = Literal["samples", "tensors"]
"""What a list of tensors is: one tensor a sample, or tensors whose first dimension is the batch."""


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in a nested value."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def select_inputs(args: tuple[Any, ...], kwargs: dict[str, Any], rows: list[int], count: int) -> tuple[Any, ...] | None:
    """The positional arguments for the samples `rows` of `count`; None if it is unclear what belongs to which sample.

    The first argument is the batch: a tensor, or a dict of tensors and lists. If another argument has as many rows, it
    may belong to the samples or be the same for all.
    """
    if not args or any(tensor.ndim and tensor.shape[0] == count for tensor in tensors_in((args[1:], kwargs))):
        return None
    batch = args[0]
    if torch.is_tensor(batch):
        return (_rows(batch, rows), *args[1:])
    if type(batch) is dict:
        return ({name: _item_rows(item, rows, count) for name, item in batch.items()}, *args[1:])
    return None


def _item_rows(item: Any, rows: list[int], count: int) -> Any:
    if torch.is_tensor(item) and item.ndim and item.shape[0] == count:
        return _rows(item, rows)
    if isinstance(item, dict):
        return {name: _item_rows(inner, rows, count) for name, inner in item.items()}
    if isinstance(item, (list, tuple)) and len(item) == count:
        return rebuilt(item, [item[row] for row in rows])
    return item


def _rows(tensor: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return tensor.index_select(0, torch.tensor(rows, dtype=torch.long, device=tensor.device))


class OutputSplitter:
    """Takes outputs apart, and remembers what their lists are.

    A list with as many tensors as samples, each with as many rows, can be read in both ways. Then the other batches of
    the same module decide, or, if this is the first, it is one tensor a sample.
    """

    def __init__(self) -> None:
        self._lists: dict[tuple[Any, ...], ListKind] = {}

    def split(self, output: Any, count: int) -> list[Any]:
        """The output of each of `count` samples. Leaves without a batch dimension belong to each of them.

        Raises `InvalidError` if a tensor has another number of rows.
        """
        return self._split(output, count, ())

    def _split(self, output: Any, count: int, path: tuple[Any, ...]) -> list[Any]:
        if torch.is_tensor(output):
            return _split_tensor(output, count, path)
        if isinstance(output, dict):
            columns = {name: self._split(item, count, (*path, name)) for name, item in output.items()}
            return [{name: column[at] for name, column in columns.items()} for at in range(count)]
        if isinstance(output, list) and self._list_kind(output, count, path) == "samples":
            return list(output)
        if isinstance(output, (list, tuple)):
            items = [self._split(item, count, (*path, at)) for at, item in enumerate(output)]
            return [rebuilt(output, [item[at] for item in items]) for at in range(count)]
        return [output] * count

    def _list_kind(self, output: list[Any], count: int, path: tuple[Any, ...]) -> ListKind:
        if len(output) != count or not output or not all(torch.is_tensor(item) for item in output):
            kind: ListKind = "tensors"
        elif all(item.ndim and item.shape[0] == count for item in output):
            return self._lists.get(path, "samples")
        elif all(item.ndim == 0 for item in output):
            return self._lists.get(path, "samples")
        else:
            kind = "samples"
        if output:
            self._lists[path] = kind
        return kind


def _split_tensor(output: torch.Tensor, count: int, path: tuple[Any, ...]) -> list[Any]:
    if output.ndim == 0:
        return [output] * count
    if output.shape[0] != count:
        where = f" at {'/'.join(map(str, path))}" if path else ""
        raise InvalidError(
            f"the module returned a tensor of shape {list(output.shape)}{where} for {count} samples: its first "
            "dimension has to be the batch, so that each sample has an output of its own"
        )
    return list(output.unbind(0))


def to_device(value: Any, device: torch.device) -> Any:
    """The value with all tensors on `device`."""
    # Copies to MPS that do not block can hang.
    non_blocking = device.type != "mps"
    return map_tensors(value, lambda tensor: tensor.to(device=device, non_blocking=non_blocking))
