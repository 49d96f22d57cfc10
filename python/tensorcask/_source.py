"""The code of a function, as a text that changes when the code changes, and the names that the code uses.

The text is the source without comments, formatting and docstrings. It is used only if it compiles to the code that
runs: a file that was edited after it was imported does not count. Otherwise the bytecode counts, which depends on the
version of Python.
"""

from __future__ import annotations

import ast
import dis
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType

MUTATORS = frozenset(
    "append appendleft extend insert add update setdefault pop popleft popitem remove discard clear sort reverse "
    "put put_nowait set acquire release write".split()
)
"""Methods that change their object."""
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_FILES_MAX = 256


@dataclass
class Uses:
    """The names that the code of a function uses from outside."""

    names: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    """Each name, and the chains of attributes that are read of it."""
    written: set[str] = field(default_factory=set)
    """Names that the code assigns or changes in place. They hold state, not configuration."""


@dataclass(frozen=True)
class _File:
    lines: tuple[str, ...]
    tree: ast.Module
    codes: dict[tuple[str, int], list[CodeType]]


_files: dict[str, _File] = {}


def text_of(code: CodeType) -> str:
    """The source of `code`, or a text of its bytecode if the source is not there or is not what runs."""
    node = node_of(code)
    if node is None:
        return f"python {sys.version_info[0]}.{sys.version_info[1]} bytecode {_bytecode(code)}"
    return ast.unparse(_without_docstrings(node))


def node_of(code: CodeType) -> ast.AST | None:
    """The syntax tree that `code` was compiled from; None if it cannot be found with certainty."""
    file = _file(code.co_filename)
    if file is None or code not in file.codes.get((code.co_name, code.co_firstlineno), []):
        return None
    found = [node for node in ast.walk(file.tree) if _is_of(node, code)]
    # Two lambdas in one line look alike.
    return found[0] if len(found) == 1 else None


def uses(code: CodeType) -> Uses:
    """The names that `code` and the functions within it use from outside."""
    found = Uses()
    own = {name for inner in nested(code) for name in inner.co_cellvars}
    for inner in nested(code):
        _read_instructions(inner, found, own)
    node = node_of(code)
    if node is not None:
        found.written |= set(_changed_in_place(node))
    return found


def _read_instructions(code: CodeType, found: Uses, own: set[str]) -> None:
    instructions = list(dis.get_instructions(code))
    for at, instruction in enumerate(instructions):
        name = instruction.argval
        if instruction.opname == "STORE_GLOBAL" or (instruction.opname == "STORE_DEREF" and name not in own):
            found.written.add(name)
        if instruction.opname not in _LOADS or name in own:
            continue
        chain: list[str] = []
        for following in instructions[at + 1:]:
            if following.opname not in _ATTRIBUTES:
                break
            chain.append(following.argval)
        found.names.setdefault(name, []).append(tuple(chain))
        if len(chain) == 1 and chain[0] in MUTATORS:
            found.written.add(name)


def nested(code: CodeType) -> Iterator[CodeType]:
    """`code` and the code of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)


def _changed_in_place(node: ast.AST) -> Iterator[str]:
    """Names whose items or attributes are assigned."""
    for inner in ast.walk(node):
        if isinstance(inner, (ast.Subscript, ast.Attribute)) and not isinstance(inner.ctx, ast.Load):
            base: ast.AST = inner
            while isinstance(base, (ast.Subscript, ast.Attribute)):
                base = base.value
            if isinstance(base, ast.Name):
                yield base.id


def _file(name: str) -> _File | None:
    linecache.checkcache(name)
    lines = tuple(linecache.getlines(name))
    known = _files.get(name)
    if known is not None and known.lines == lines:
        return known
    if not lines:
        return None
    try:
        tree = ast.parse("".join(lines))
        module = compile("".join(lines), name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    codes: dict[tuple[str, int], list[CodeType]] = {}
    for code in nested(module):
        codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)
    if len(_files) >= _FILES_MAX:
        _files.clear()
    _files[name] = _File(lines, tree, codes)
    return _files[name]


def _is_of(node: ast.AST, code: CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and node.lineno == code.co_firstlineno
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.name != code.co_name:
        return False
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) == code.co_firstlineno


class _Docstrings(ast.NodeTransformer):
    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and _has_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
        return node


def _has_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _without_docstrings(node: ast.AST) -> ast.AST:
    # The tree is shared, so a copy is changed.
    return _Docstrings().visit(ast.parse(ast.unparse(node)))


def _bytecode(code: CodeType) -> str:
    constants = [_bytecode(item) if isinstance(item, CodeType) else _constant(item) for item in code.co_consts]
    parts = (code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars,
             code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return repr(parts)


def _constant(value: object) -> str:
    # The order of a set of strings differs between processes.
    return f"frozenset({sorted(map(repr, value))})" if isinstance(value, frozenset) else repr(value)
