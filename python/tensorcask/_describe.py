"""Describes functions, classes and objects: their code, and the values that the code uses."""

from __future__ import annotations

import builtins
import functools
import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import _structure
from ._bindings import Bindings, content, is_bound
from ._canonical import canonical, named
from ._digests import digest_of, digest_of_array
from ._names import is_library, is_library_module, qualified_name
from ._source import Uses, text_of, uses
from ._state import written_attributes
from ._structure import Variable

_MOST = 5000
"""The number of functions, classes and objects that one description may hold."""
_LONG = 240
_HARMLESS = ("_thread", "threading", "queue", "_queue", "logging", "multiprocessing", "concurrent", "contextlib",
             "contextvars", "_contextvars", "weakref", "itertools", "typing", "types", "abc", "_abc", "warnings")
_BUILTIN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
            types.MethodWrapperType, types.ClassMethodDescriptorType)
_SKIPPED = ("_abc_impl", "_is_protocol", "_tensorcask")
_MARKS = ("__wrapped__", "__signature__", "__isabstractmethod__")
_CACHED = ("tensorcask._function", "tensorcask._module")


class Describer:
    """Collects the identity of a computation.

    `arguments` holds one line for each function, class and value; `variables` the tensors that count by their bytes;
    `reasons` says what cannot be described.
    """

    def __init__(self) -> None:
        self.arguments: dict[str, str] = {}
        self.reasons: list[str] = []
        self.bindings = Bindings()
        self.tensors: list[Variable] = []
        self.modules: list[tuple[str, Any]] = []
        self._labels: dict[int, str] = {}
        self._named_so: dict[str, int] = {}
        self._alive: list[Any] = []
        self._strict = True
        self._within_class = False

    def add(self, name: str, text: str) -> None:
        """Adds a line. Long texts are shortened and end with a digest of the whole."""
        shown = text if len(text) <= _LONG else f"{text[:_LONG]}… {digest_of(text)}"
        found, number = name, 1
        while found in self.arguments and self.arguments[found] != shown:
            number += 1
            found = f"{name} #{number}"
        self.arguments[found] = shown

    def value(self, where: str, value: Any) -> str:
        """The text of any value. Tensors, modules, functions and objects that it holds are described under `where`."""
        count = 0

        def other(item: Any) -> str:
            nonlocal count
            if isinstance(item, type):
                return self._other(where, item)
            count += 1
            return self._other(where if count == 1 else f"{where}[{count}]", item)

        name = where.rpartition(".")[2]
        return named(name, value, lambda item: canonical(item, other, self.bindings.container))

    def callable(self, where: str, value: Any) -> str:
        """The text of the computation itself, whose code has to be visible."""
        if isinstance(value, functools.partial) or inspect.ismethod(value) or type(value).__module__ in _CACHED:
            return self._other(where, value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self.class_(value)
        if isinstance(value, _BUILTIN) or is_library(type(value).__module__):
            code = getattr(value, "code", None)
            if isinstance(code, str):
                return f"script {digest_of(code)}"
            wrapped = getattr(value, "__wrapped__", None)
            if wrapped is not None:
                return self.callable(where, wrapped)
            self.reasons.append(f"the code of {qualified_name(value)} cannot be seen")
            return qualified_name(value)
        return self._object(where, value)

    def class_(self, kind: type) -> str:
        """Describes a class of the user: its methods, class attributes, and bases."""
        name, is_first = self._label(kind, qualified_name(kind))
        if not is_first:
            return name
        with self._of_class():
            parts = [base.__qualname__ if self._counts(base) else qualified_name(base) for base in kind.__bases__]
            for base in kind.__bases__:
                if self._counts(base):
                    self.class_(base)
            parts += [f"{key}: {text}" for key, text in sorted(self._members(kind))]
        self.add(f"class {name}", digest_of("\n".join(parts)))
        return name

    def module(self, where: str, module: Any, all_classes: bool | None = None) -> str:
        """Describes an `nn.Module`: a line for each submodule, the source of its classes, and its variables."""
        module = _structure.unwrapped(module)
        name, is_first = self._label(module, qualified_name(type(module)))
        if not is_first:
            return name
        prefix = f"{where}." if where else ""
        with self._of_class():
            for path, text in _structure.lines(module, lambda path, value: self.value(prefix + path, value)):
                self.add(f"module {prefix}{path}".rstrip(". "), text)
            if all_classes is not False:
                for kind in _structure.user_classes(module, bool(all_classes)):
                    self.class_(kind)
        for submodule in map(_structure.unwrapped, module.modules()):
            if not _structure.is_scripted(submodule):
                self._watch(submodule)
        self.modules.append((where, module))
        return name

    def _watch(self, module: Any) -> None:
        """Watches children, hooks and plain attributes of a module, and whether it gets or loses variables."""
        for owner in (module._modules, *(getattr(module, name) for name in _structure.HOOKS)):
            self.bindings.items(owner)
        for owner in (module._parameters, module._buffers):
            self.bindings.space(owner, [name for name, tensor in owner.items() if tensor is None])
        self.bindings.space(vars(module), _structure.counted(module))

    # What a value is

    def _other(self, where: str, value: Any) -> str:
        """The text of a value that is not plain."""
        name = type(value).__module__.partition(".")[0]
        if type(value).__module__ in _CACHED:
            return self._other(where, value.unwrap())
        if name == "numpy" and type(value).__name__ == "ndarray":
            self.bindings.array(value)
            return digest_of_array(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(where, value)
        if isinstance(value, torch.nn.Module):
            return self.module(where, value)
        if isinstance(value, functools.partial):
            self.bindings.items(value.keywords)
            given = {**{str(position): item for position, item in enumerate(value.args)}, **value.keywords}
            texts = [f"{key}={self.value(f'{where} {key}', item)}" for key, item in given.items()]
            return f"partial {self.callable(where, value.func)}({', '.join(texts)})"
        if inspect.ismethod(value):
            return f"method {value.__func__.__qualname__} of {self.value(where, value.__self__)}" + self._method(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self.class_(value) if self._counts(value) else qualified_name(value)
        return self._rest(where, value, name)

    def _method(self, value: types.MethodType) -> str:
        function: Any = value.__func__
        seen = isinstance(function, types.FunctionType) and not is_library(_module_of(function))
        return f" {self._function(function)}" if seen else ""

    def _rest(self, where: str, value: Any, top: str) -> str:
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(value, _BUILTIN) or type(value).__name__ in ("ufunc", "_ArrayFunctionDispatcher"):
            return qualified_name(value)
        if isinstance(value, types.ModuleType):
            return value.__name__
        if type(value).__module__ == "torch._ops":
            return str(value)
        if isinstance(value, (types.GenericAlias, types.UnionType)) or top in ("typing", "typing_extensions"):
            return repr(value)
        if isinstance(wrapped, types.FunctionType):
            return self._function(wrapped)
        if top in _HARMLESS:
            return qualified_name(type(value))
        if not is_library(type(value).__module__):
            return self._object(where, value)
        if isinstance(getattr(value, "code", None), str):
            return f"script {digest_of(value.code)}"
        if self._strict:
            kind = qualified_name(type(value))
            self.reasons.append(f"{where} is of the type {kind}, whose state cannot be described")
        return qualified_name(type(value))

    def _tensor(self, where: str, value: Any) -> str:
        name, is_first = self._label(value, f"tensor {where}")
        if is_first:
            self.tensors.append((where, value, {where: value}, where))
        return "tensor" if is_first else name

    def _object(self, where: str, value: Any) -> str:
        """Describes an object of a user's class: its class and its attributes."""
        kind = self.class_(type(value))
        name, is_first = self._label(value, f"an object of {kind}")
        if not is_first:
            return name
        skipped = written_attributes(type(value))
        if hasattr(value, "__dict__"):
            self.bindings.space(vars(value), vars(value).keys() - skipped)
        attributes = dict(getattr(value, "__dict__", {}))
        slots = {slot for base in type(value).__mro__ for slot in _slots(base) if hasattr(value, slot)} - skipped
        self.bindings.attributes(value, sorted(slots))
        attributes.update({slot: getattr(value, slot) for slot in slots})
        names = sorted(attributes.keys() - skipped)
        texts = [f"{key}: {self.value(f'{where}.{key}', attributes[key])}" for key in names]
        return f"{kind}{{{', '.join(texts)}}}"

    # Code

    def _function(self, function: types.FunctionType) -> str:
        """Describes a function: its code, its defaults, and what it uses from outside."""
        name, is_first = self._label(function, function.__qualname__)
        if not is_first:
            return name
        library = is_library(_module_of(function))
        with self._strictness(not library and not self._within_class):
            seen = not library or self._is_root()
            if seen:
                self.bindings.function(function)
            parts = [text_of(function.__code__) if seen else qualified_name(function)]
            defaults: dict[Any, Any] = dict(enumerate(function.__defaults__ or ()))
            defaults |= function.__kwdefaults__ or {}
            parts += [f"default {key}: {self.value(f'default {key} of {name}', defaults[key])}" for key in defaults]
            used = uses(function.__code__)
            parts += self._attributes_of(function, used.written)
            parts += list(self._closure(function, used.written, library))
            self.add(f"function {name}", digest_of("\n".join(parts)))
            if not library:
                self._globals(function, used)
        return name

    def _closure(self, function: types.FunctionType, written: set[str], library: bool) -> Iterator[str]:
        for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            value = content(cell)
            if variable in written or variable == "__class__" or not is_bound(value):
                continue
            if not library:
                self.bindings.cell(cell)
            where = f"closure {variable}"
            text = self.value(where, value)
            yield f"closure {variable}: {text}"
            if not library and not isinstance(value, types.FunctionType):
                self.add(where, text)

    def _attributes_of(self, function: types.FunctionType, written: set[str]) -> list[str]:
        """Describes the attributes of a function, which its code may read."""
        found = {key: value for key, value in vars(function).items() if key not in _MARKS}
        if not found or function.__name__ in written or is_library(_module_of(function)):
            return []
        self.bindings.names(vars(function), found)
        return [f"attribute {key}: {self.value(f'{function.__qualname__}.{key}', found[key])}" for key in sorted(found)]

    def _globals(self, function: types.FunctionType, used: Uses) -> None:
        space = function.__globals__
        for name in sorted(used.names):
            if name in used.written or name not in space or name in function.__code__.co_freevars:
                continue
            value = space[name]
            if isinstance(value, types.ModuleType):
                for chain in sorted(set(used.names[name])):
                    self._of_module(value, chain)
                continue
            self._named(space, name, value)

    def _of_module(self, module: types.ModuleType, chain: tuple[str, ...]) -> None:
        """Describes what a module of the user holds under a chain of attributes."""
        for name in chain:
            if is_library_module(module) or not hasattr(module, name):
                return
            value = getattr(module, name)
            if not isinstance(value, types.ModuleType):
                self._named(vars(module), name, value)
                return
            module = value

    def _named(self, space: dict[str, Any], name: str, value: Any) -> None:
        """Describes a global variable."""
        is_code = isinstance(value, (type, types.FunctionType, *_BUILTIN))
        if is_code and is_library(_module_of(value)) and not getattr(value, "__closure__", None):
            return
        self.bindings.names(space, [name])
        where = f"global {name}"
        text = self.value(where, value)
        # Functions and classes have lines of their own.
        if not is_code:
            self.add(where, text)

    def _members(self, kind: type) -> Iterator[tuple[str, str]]:
        for key, member in vars(kind).items():
            functions = _functions_of(member)
            if functions is not None:
                parts = [self._function(item) for item in map(_undecorated, functions) if item is not None]
                if parts:
                    yield key, ", ".join(parts)
            elif not (key.startswith("__") and key.endswith("__")) and not key.startswith(_SKIPPED):
                yield key, self.value(f"{kind.__qualname__}.{key}", member)
            else:
                continue
            self.bindings.names(vars(kind), [key])

    # Bookkeeping

    def _counts(self, kind: type) -> bool:
        return not is_library(kind.__module__) and kind.__module__ != builtins.__name__

    def _is_root(self) -> bool:
        return len(self._alive) == 1

    def _label(self, value: Any, name: str) -> tuple[str, bool]:
        """A name that no other value has, and whether the value is described for the first time."""
        known = self._labels.get(id(value))
        if known is not None:
            return known, False
        if len(self._alive) >= _MOST:
            self.reasons.append(f"it uses more than {_MOST} functions, classes and objects")
            return name, False
        self._named_so[name] = number = self._named_so.get(name, 0) + 1
        label = name if number == 1 else f"{name} #{number}"
        self._labels[id(value)] = label
        self._alive.append(value)
        return label, True

    @contextmanager
    def _strictness(self, strict: bool) -> Iterator[None]:
        """Whether objects whose state cannot be described are a reason, or count by their type."""
        before, self._strict = self._strict, strict
        try:
            yield
        finally:
            self._strict = before

    @contextmanager
    def _of_class(self) -> Iterator[None]:
        """Describes a class or a module, which may hold objects that do not matter, such as loggers."""
        before, self._within_class = self._within_class, True
        try:
            with self._strictness(False):
                yield
        finally:
            self._within_class = before


def _slots(kind: type) -> Iterator[str]:
    slots = vars(kind).get("__slots__", ())
    yield from [slots] if isinstance(slots, str) else slots


def _functions_of(member: Any) -> list[Any] | None:
    """The functions of a member of a class; None if it is a value."""
    if isinstance(member, types.FunctionType):
        return [member]
    if isinstance(member, (staticmethod, classmethod)):
        return [member.__func__]
    if isinstance(member, property):
        return [member.fget, member.fset]
    if isinstance(member, functools.cached_property):
        return [member.func]
    return None


def _undecorated(function: Any) -> types.FunctionType | None:
    """A method as its class defined it; None for one that this package added."""
    while isinstance(function, types.FunctionType) and _module_of(function).partition(".")[0] == "tensorcask":
        function = getattr(function, "__wrapped__", None)
    return function if isinstance(function, types.FunctionType) else None


def _module_of(value: Any) -> str:
    """The module whose code a function is. A wrapper has the name of what it wraps, but not its code."""
    if isinstance(value, types.FunctionType):
        return str(value.__globals__.get("__name__", value.__module__))
    return str(getattr(value, "__module__", None) or "builtins")
