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

from ._names import is_library

_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|hpu|privateuseone)(:\d+)?")
_DEEPEST = 24
_PLAIN_MODULES = ("builtins", "datetime", "decimal", "fractions", "pathlib", "pathlib._local")
_BY_REPR = (int, float, complex, str, bytes, datetime.date, datetime.timedelta, decimal.Decimal, fractions.Fraction,
            PurePath, range)
_TORCH_PLAIN = ("dtype", "layout", "memory_format", "qscheme")

Other = Callable[[Any], str]
"""Describes a value that is not plain, or a class."""


def _ignore(value: Any) -> None:
    """Does not watch a container."""


def canonical(value: Any, other: Other, watch: Callable[[Any], None] = _ignore, depth: int = 0) -> str:
    """The text of `value`. Values that are not plain, and classes of plain ones, are passed to `other`.

    Plain are None, numbers, strings, bytes, dates, paths, patterns, members of enums, dtypes, and lists, tuples, sets,
    mappings, dataclasses and configuration objects of these. The order of a mapping counts, as code can read it.
    Devices have one text, as they do not name a computation. Containers that can be changed are passed to `watch`.
    """
    if value is None or isinstance(value, bool) or value is Ellipsis:
        return repr(value)
    if depth > _DEEPEST:
        return other(value)
    if isinstance(value, enum.Enum):
        # Flags without a name have a value only.
        return f"{other(type(value))}.{value.name}={canonical(value.value, other, watch, depth + 1)}"

    def of(item: Any) -> str:
        return canonical(item, other, watch, depth + 1)

    for kind in _BY_REPR:
        if isinstance(value, kind):
            return _by_repr(value, kind, of, other)
    return _of_library(value) or _of_container(value, of, other, watch)


def named(name: str, value: Any, text_of: Callable[[Any], str]) -> str:
    """The text of a value under a name. Texts such as "cuda:0" are devices if the name says so."""
    is_device = isinstance(value, str) and "device" in name.lower() and _DEVICE.fullmatch(value)
    return "device" if is_device else text_of(value)


def _by_repr(value: Any, kind: Any, of: Callable[[Any], str], other: Other) -> str:
    if type(value).__module__ in _PLAIN_MODULES:
        return repr(value)
    if type(value).__module__.partition(".")[0] == "numpy":
        return f"numpy.{type(value).__name__}({value.item()!r})"
    # A subclass may show itself in any way.
    return f"{other(type(value))}({kind.__repr__(value)}{_extras(value, set(), of)})"


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


def _of_container(value: Any, of: Callable[[Any], str], other: Other, watch: Callable[[Any], None]) -> str:
    if isinstance(value, type):
        return other(value)
    parts = _parts(value, of)
    if parts is None:
        return other(value)
    text, fields = parts
    watch(value)
    kind = type(value)
    if kind.__module__ == "builtins":
        return text
    return other(kind) + text + _extras(value, fields, of)


def _parts(value: Any, of: Callable[[Any], str]) -> tuple[str, set[str]] | None:
    """The text of what a container holds, and the attributes that are part of it; None if it is no container."""
    if isinstance(value, (list, tuple)):
        left, right = "[]" if isinstance(value, list) else "()"
        return left + ", ".join(map(of, value)) + right, set()
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(of, value))) + "}", set()
    if isinstance(value, Mapping):
        return _items(value, of), set(getattr(value, "__dict__", ()) if is_library(type(value).__module__) else ())
    configuration = _configuration(value)
    if configuration is not None:
        return _items(dict(sorted(configuration.items())), of), set(vars(value))
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return _items(fields, of), set(fields)
    if isinstance(value, (types.SimpleNamespace, Namespace)):
        return _items(dict(sorted(vars(value).items())), of), set(vars(value))
    return None


def _extras(value: Any, fields: set[str], of: Callable[[Any], str]) -> str:
    """The attributes that an instance of a subclass has beside what it holds."""
    extras = {name: item for name, item in sorted(getattr(value, "__dict__", {}).items()) if name not in fields}
    return " with " + _items(extras, of) if extras else ""


def _configuration(value: Any) -> dict[str, Any] | None:
    """The public entries of a library's configuration object, which is one that converts itself to a dict."""
    convert = getattr(type(value), "to_dict", None)
    if convert is None or not hasattr(value, "__dict__") or not type(value).__name__.lower().endswith("config"):
        return None
    if not is_library(getattr(convert, "__module__", None)):
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
    return "{" + ", ".join(f"{of(key)}: {named(str(key), item, of)}" for key, item in value.items()) + "}"
