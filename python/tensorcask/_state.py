"""Attributes that a computation itself writes, such as counters and logs. They are results, not configuration."""

from __future__ import annotations

import ast
import dis
import functools
from collections.abc import Hashable
from types import CodeType, FunctionType
from typing import Any, cast

from ._names import is_library_file
from ._source import MUTATORS, nested, node_of

_ROOTS = ("forward", "__call__")


def written_attributes(kind: type) -> frozenset[str]:
    """The attributes that `forward` or `__call__`, and the methods that these use, assign or change in place."""
    return _written_attributes(cast("Hashable", kind))


@functools.lru_cache(maxsize=4096)
def _written_attributes(kind: Any) -> frozenset[str]:
    written: set[str] = set()
    pending, seen = list(_ROOTS), set(_ROOTS)
    while pending:
        method = _method(kind, pending.pop())
        if method is None:
            continue
        written |= _written_by(method.__code__)
        used = {name for code in nested(method.__code__) for name in code.co_names}
        found = {name for name in used - seen if _method(kind, name) is not None}
        seen |= found
        pending += found
    return frozenset(written)


def _method(kind: type, name: str) -> FunctionType | None:
    for base in kind.__mro__:
        # The machinery of torch's own base class is not part of a computation.
        if name in vars(base) and (base.__module__, base.__name__) != ("torch.nn.modules.module", "Module"):
            member = vars(base)[name]
            member = getattr(member, "fget", None) or getattr(member, "__func__", member)
            return member if isinstance(member, FunctionType) else None
    return None


def _written_by(code: CodeType) -> set[str]:
    found: set[str] = set()
    for inner in nested(code):
        before = ""
        for instruction in dis.get_instructions(inner):
            is_read = instruction.opname in ("LOAD_ATTR", "LOAD_METHOD")
            if instruction.opname == "STORE_ATTR":
                found.add(instruction.argval)
            elif is_read and instruction.argval in MUTATORS and before:
                found.add(before)
            before = instruction.argval if is_read else ""
    node = None if is_library_file(code.co_filename) else node_of(code)
    for item in ast.walk(node) if node is not None else ():
        if not isinstance(item, ast.Subscript) or isinstance(item.ctx, ast.Load):
            continue
        if isinstance(item.value, ast.Attribute):
            found.add(item.value.attr)
    return found
