"""A text for plain values that is the same in every process."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import re
import types
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

from ._names import qualified_name

_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu|privateuseone)(:\d+)?")
_DEEPEST = 24
_BY_REPR = (int, float, complex, str, bytes, datetime.date, datetime.timedelta, decimal.Decimal, fractions.Fraction,
            PurePath, range)
_TORCH_PLAIN = ("dtype", "layout", "memory_format", "qscheme")

Other = Callable[[Any], str]
"""Describes a value that is not plain."""


def canonical(value: Any, other: Other, depth: int = 0) -> str:
    """The text of `value`. Values that are not plain are passed to `other`.

    Plain are None, numbers, strings, bytes, dates, paths, patterns, members of enums, dtypes, and lists, tuples, sets,
    mappings, dataclasses and configuration objects of these. Devices have one text, as they do not name a computation.
    """
    if value is None or isinstance(value, bool) or value is Ellipsis:
        return repr(value)
    if isinstance(value, enum.Enum):
        return f"{qualified_name(type(value))}.{value.name}"
    if isinstance(value, str):
        return "device" if _DEVICE.fullmatch(value) else repr(str(value))
    if isinstance(value, _BY_REPR):
        plain = type(value).__module__ in ("builtins", "datetime", "decimal", "fractions", "pathlib", "pathlib._local")
        return repr(value) if plain else f"{qualified_name(type(value))}({value!r})"
    if depth > _DEEPEST:
        return other(value)
    text = _of_library(value)
    if text is not None:
        return text
    return _of_container(value, lambda item: canonical(item, other, depth + 1), other)


def _of_library(value: Any) -> str | None:
    """Plain values of torch, numpy and re."""
    kind = type(value)
    if kind.__module__ == "torch":
        if kind.__name__ == "device":
            return "device"
        if kind.__name__ in _TORCH_PLAIN:
            return repr(value)
        if kind.__name__ == "Size":
            return repr(tuple(value))
    if kind.__module__.partition(".")[0] == "numpy":
        if kind.__name__.endswith("DType") or kind.__name__ == "dtype":
            return f"numpy.dtype({value.str!r})" if value.names is None else f"numpy.dtype({value.descr!r})"
        if hasattr(value, "item") and getattr(value, "shape", None) == () and kind.__name__ != "ndarray":
            return f"numpy.{kind.__name__}({value.item()!r})"
    if isinstance(value, re.Pattern):
        return f"re.compile({value.pattern!r}, {value.flags})"
    if isinstance(value, slice):
        return f"slice({value.start!r}, {value.stop!r}, {value.step!r})"
    return None


def _of_container(value: Any, of: Callable[[Any], str], other: Other) -> str:
    name = "" if type(value).__module__ == "builtins" else qualified_name(type(value))
    if isinstance(value, (list, tuple)):
        left, right = "[]" if isinstance(value, list) else "()"
        return name + left + ", ".join(of(item) for item in value) + right
    if isinstance(value, (set, frozenset)):
        return name + "{" + ", ".join(sorted(of(item) for item in value)) + "}"
    if isinstance(value, Mapping):
        return name + _items(value, of)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return name + _items({field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}, of)
    if isinstance(value, (types.SimpleNamespace, Namespace)):
        return name + _items(vars(value), of)
    configuration = _configuration(value)
    return other(value) if configuration is None else name + _items(configuration, of)


def _configuration(value: Any) -> dict[str, Any] | None:
    """The public entries of a configuration object, which is one that converts itself to a dict."""
    convert = getattr(type(value), "to_dict", None)
    if convert is None or isinstance(value, type) or not type(value).__name__.lower().endswith("config"):
        return None
    try:
        found = convert(value)
    except Exception:  # noqa: BLE001 - any failure means that it is not a configuration
        return None
    if not isinstance(found, dict):
        return None
    # Private entries hold the path it was loaded from and the revision of that file.
    return {key: item for key, item in found.items() if not str(key).startswith("_")}


def _items(value: Mapping[Any, Any], of: Callable[[Any], str]) -> str:
    return "{" + ", ".join(sorted(f"{of(key)}: {of(item)}" for key, item in value.items())) + "}"
