"""Arguments of calls that are neither tensors nor plain values, as text for keys."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

from ._errors import InvalidError


def fields(value: Any) -> dict[str, Any] | None:
    """The items of a mapping, such as the inputs that a tokenizer returns; ``None`` for anything else."""
    return dict(value.items()) if isinstance(value, collections.abc.Mapping) else None


def as_tensor(value: Any) -> Any:
    """An array of NumPy as a tensor. Arrays that PyTorch cannot share are copied.

    Raises:
        InvalidError: the array has a dtype that tensors do not have.
    """
    import numpy
    import torch

    array = numpy.asarray(value)
    if not array.dtype.isnative or not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = numpy.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise InvalidError(f"an argument is an array of dtype {array.dtype}, which tensors do not have: {error}") from None


def describe(value: Any) -> str | None:
    """A text that is equal for equal values, in every process; ``None`` if there is none."""
    of = type(value)
    name = f"{of.__module__}.{of.__qualname__}"
    if isinstance(value, enum.Enum):
        # Flags without a name have a value only, and a member's value may be changed.
        inner = describe(value.value)
        return None if inner is None else f"{name}.{value.name}={inner}"
    for plain in (int, float, complex, bytes, str):
        if isinstance(value, plain):
            # A subclass may show itself as it likes.
            return f"{name}:{plain.__repr__(value)}"
    if isinstance(value, (range, slice)):
        return f"{name}:{value!r}"
    if value is None:
        return "None"
    if isinstance(value, (tuple, list)):
        return _all(f"{name}{getattr(of, '_fields', '')}", value)
    if isinstance(value, (frozenset, set)):
        items = [describe(item) for item in value]
        return None if None in items else f"{name}:{sorted(str(item) for item in items)}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if "<locals>" in name:
            # Two functions may make classes of one name.
            return None
        names = [field.name for field in dataclasses.fields(value)]
        if set(vars(value) if hasattr(value, "__dict__") else names) != set(names):
            return None
        return _all(f"{name}{names}", [getattr(value, name) for name in names])
    if isinstance(value, pathlib.PurePath):
        return f"{of.__name__}:{value}"
    if isinstance(value, type):
        # The code of other classes may differ under one name.
        is_fixed = value.__module__.partition(".")[0] in ("builtins", "torch", "numpy")
        return f"class:{value.__module__}.{value.__qualname__}" if is_fixed else None
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return f"{name}:{value}"
    if of.__module__ == "numpy" and hasattr(value, "item"):
        return f"{name}:{value.item()!r}"
    return None


def describe_class(of: type) -> str:
    """The name of a mapping's class."""
    return f"class:{of.__module__}.{of.__qualname__}"


def _all(name: str, items: Iterable[Any]) -> str | None:
    described = [describe(item) for item in items]
    return None if None in described else f"{name}:{described}"
