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
_READS = ("LOAD_ATTR", "LOAD_METHOD")


def written_attributes(kind: type) -> frozenset[str]:
    """The attributes that `forward` or `__call__`, and the methods that these use, assign or change in place."""
    return _written_attributes(cast("Hashable", kind))


@functools.lru_cache(maxsize=4096)
def _written_attributes(kind: Any) -> frozenset[str]:
    written = {name for base in kind.__mro__ for name, member in vars(base).items()
               if isinstance(member, functools.cached_property)}
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
            member = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
            return member if isinstance(member, FunctionType) else None
    return None


def _written_by(code: CodeType) -> set[str]:
    if not code.co_argcount:
        return set()
    own = code.co_varnames[0]
    found = {name for inner in nested(code) for name in _in_instructions(list(dis.get_instructions(inner)), own)}
    node = None if is_library_file(code.co_filename) else node_of(code)
    for item in ast.walk(node) if node is not None else ():
        if isinstance(item, ast.Subscript) and not isinstance(item.ctx, ast.Load):
            found |= _attribute_of(item.value, own)
        elif isinstance(item, ast.Attribute) and not isinstance(item.ctx, ast.Load):
            found |= _attribute_of(item, own)
    return found


def _attribute_of(node: ast.AST, own: str) -> set[str]:
    is_own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == own
    return {node.attr} if isinstance(node, ast.Attribute) and is_own else set()


def _in_instructions(instructions: list[dis.Instruction], own: str) -> set[str]:
    """The attributes of `own` that are assigned, or of which a method is read that changes its object."""
    found = set()
    for at in range(1, len(instructions)):
        now, before = instructions[at], instructions[at - 1]
        if now.opname == "STORE_ATTR" and (_loads(before, own) or _is_augmented(instructions, at, own)):
            found.add(now.argval)
        is_read = now.opname in _READS and before.opname in _READS
        if is_read and now.argval in MUTATORS and at > 1 and _loads(instructions[at - 2], own):
            found.add(before.argval)
    return found


def _is_augmented(instructions: list[dis.Instruction], at: int, own: str) -> bool:
    """Whether it is the assignment of `self.name += …`, which copies the reference to `self` before it reads."""
    for before in range(at - 1, 1, -1):
        is_copied = instructions[before - 1].opname in ("COPY", "DUP_TOP")
        if is_copied and instructions[before].opname in _READS and instructions[before].argval == instructions[at].argval:
            return _loads(instructions[before - 2], own)
    return False


def _loads(instruction: dis.Instruction, name: str) -> bool:
    if not instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "STORE_FAST_LOAD_FAST")):
        return False
    # Some instructions load two variables.
    return bool((instruction.argval[-1] if isinstance(instruction.argval, tuple) else instruction.argval) == name)
