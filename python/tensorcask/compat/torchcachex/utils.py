"""Batches of nested values and their samples."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

logger = logging.getLogger(__name__)

TensorLike: TypeAlias = torch.Tensor | Sequence[Any] | Mapping[Any, Any]
"""A tensor, or a list, tuple or dict of such."""


def map_tensors(value: Any, change: Any) -> Any:
    """The same structure with `change(tensor)` in place of each tensor. Other leaves are the same objects."""
    if torch.is_tensor(value):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(item, change) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return rebuilt(value, [map_tensors(item, change) for item in value])
    return value


def rebuilt(like: Any, items: list[Any]) -> Any:
    """A list, tuple or named tuple of the type of `like` with other items."""
    if isinstance(like, list):
        return items
    return type(like)(*items) if hasattr(like, "_fields") else tuple(items)


def _tree_index(x: Any, i: int) -> Any:
    """Sample `i` of a batch.

    A tensor gives its row `i`, and a list of tensors, which is a batch of samples of different shapes, its item `i`.
    Dicts, tuples and other lists are indexed item by item. Any other leaf belongs to all samples, and is returned as it
    is.
    """
    if torch.is_tensor(x):
        return x[i]
    if isinstance(x, list) and x and torch.is_tensor(x[0]):
        return x[i]
    if isinstance(x, dict):
        return {name: _tree_index(item, i) for name, item in x.items()}
    if isinstance(x, (list, tuple)):
        return rebuilt(x, [_tree_index(item, i) for item in x])
    return x


def _tree_stack(samples: list[Any]) -> Any:
    """The batch of `samples`, which is the inverse of `_tree_index`.

    Tensors of one shape are stacked; tensors of several shapes become a list. Dicts, tuples and lists are stacked item
    by item. Other leaves become a list with one item a sample.

    Raises `ValueError` if there are no samples.
    """
    if not samples:
        raise ValueError("Cannot stack empty list of samples: pass at least one")
    first = samples[0]
    if torch.is_tensor(first):
        if all(sample.shape == first.shape for sample in samples):
            return torch.stack(samples)
        logger.debug("the samples of a batch have several shapes, so the batch is a list of tensors")
        return samples
    if isinstance(first, dict):
        return {name: _tree_stack([sample[name] for sample in samples]) for name in first}
    if isinstance(first, (list, tuple)):
        return rebuilt(first, [_tree_stack([sample[at] for sample in samples]) for at in range(len(first))])
    return samples


def _serialize_sample(obj: Any) -> bytes:
    """The bytes of a sample, with all tensors on the CPU and without gradients."""
    stream = io.BytesIO()
    torch.save(map_tensors(obj, lambda tensor: tensor.detach().cpu()), stream)
    return stream.getvalue()


def _deserialize_sample(blob: bytes, map_location: str = "cpu") -> Any:
    """The sample of bytes that `_serialize_sample` returned.

    Only tensors, plain values and containers of them are accepted, so that no code runs because of the bytes.
    """
    return torch.load(io.BytesIO(blob), map_location=map_location, weights_only=True)
