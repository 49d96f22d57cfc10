"""Values of classes as named fields, and back: dataclasses, named tuples, outputs of Hugging Face models, NumPy arrays.

A class is found by its name among the modules that the process has imported. Nothing is imported, and nothing is
unpickled, because bytes on disk name it.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from ._errors import MismatchError

# Classes that values of this process had. Classes that are defined in a function cannot be found by name.
_seen: dict[str, type] = {}


def encode(value: Any) -> tuple[str | None, dict[str, Any]] | None:
    """The class's name and the fields of ``value``; ``None`` if its class is of no known kind."""
    of = type(value)
    name = f"{of.__module__}.{of.__qualname__}"
    if "<locals>" in name:
        _seen[name] = of
    if isinstance(value, dict):
        # `ModelOutput` is a dict and a dataclass. Its fields that are None are not among its items.
        is_model_output = dataclasses.is_dataclass(of) or _is_model_output(of)
        return (name if is_model_output else None), dict(value)
    if isinstance(value, tuple) and hasattr(of, "_fields"):
        return name, dict(zip(of._fields, value))
    if dataclasses.is_dataclass(of):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return name, fields
    if of.__module__ == "numpy" and of.__name__ == "ndarray":
        import torch

        return "numpy.ndarray", {"array": torch.from_numpy(value)}
    if of.__module__ == "numpy" and hasattr(value, "item"):
        return "numpy.scalar", {"name": value.dtype.name, "value": value.item()}
    return None


def decode(name: str, fields: dict[str, Any]) -> Any:
    """The value of the class ``name`` with these fields.

    Raises:
        MismatchError: the class is not among the imported modules.
    """
    if name == "dict":
        return fields
    if name == "numpy.ndarray":
        return _as_numpy(fields["array"])
    if name == "numpy.scalar":
        import numpy

        return numpy.dtype(fields["name"]).type(fields["value"])
    of = _find(name)
    if of is None:
        raise MismatchError(
            f"the kept outputs are of the class {name}, which this process has not imported: import its module first"
        )
    if isinstance(of, type) and issubclass(of, tuple) and hasattr(of, "_make"):
        return of(**fields)
    if isinstance(of, type) and (dataclasses.is_dataclass(of) or _is_model_output(of)):
        return of(**fields)
    raise MismatchError(f"the kept outputs are of the class {name}, which is no dataclass or named tuple any more")


def _as_numpy(array: Any) -> Any:
    return array.numpy() if hasattr(array, "numpy") else array


def _is_model_output(of: type) -> bool:
    return any(base.__name__ == "ModelOutput" and base.__module__.startswith("transformers") for base in of.__mro__)


def _find(name: str) -> Any:
    """The class of this name in an imported module; modules are tried from the longest name on."""
    if name in _seen:
        return _seen[name]
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:end]))
        if module is None:
            continue
        found: Any = module
        for part in parts[end:]:
            found = getattr(found, part, None)
        if isinstance(found, type):
            return found
    return None
