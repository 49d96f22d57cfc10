"""The identity of a computation: what tells it apart from all others, as the native handle takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from . import _structure
from ._canonical import canonical, named
from ._describe import Describer
from ._digests import digest_of, digest_of_array
from ._names import module_id_of, qualified_name
from ._structure import Variable


@dataclass(frozen=True)
class Given:
    """What the caller says about the identity."""

    module_id: str | None = None
    version: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    source: bool | None = None
    check_structure: bool = True


class Identity:
    """The identity of a computation at one time.

    `changed` says whether it has to be made again. `accept` is called after changes that the computation itself made.
    """

    def __init__(self, subject: Any, given: Given, constructor: Mapping[str, str] | None = None) -> None:
        described = Describer()
        structure = _describe(described, subject, given)
        if not given.check_structure:
            structure, described.arguments = "", {}
        self._described = described
        described.bindings.keep()
        self.changed: Callable[[], bool] = described.bindings.changed
        self.accept: Callable[[], None] = described.bindings.keep
        arguments = described.arguments | dict(constructor or {})
        self.settings: dict[str, Any] = {
            "module_id": given.module_id or default_module_id(subject),
            "version": given.version,
            "arguments": arguments | {name: _argument(value) for name, value in given.arguments.items()},
            "weights": {name: _digest(name, value) for name, value in given.fingerprint.items()},
            "structure": structure,
            "indistinct": "; ".join(dict.fromkeys(described.reasons)) or None,
        }

    @property
    def watches(self) -> bool:
        """Whether there are variables."""
        return bool(self._described.modules or self._described.tensors)

    @property
    def modules(self) -> list[torch.nn.Module]:
        """The modules whose variables count."""
        return [module for _, module in self._described.modules]

    def variables(self, skipped: Callable[[Any, str], bool]) -> list[Variable]:
        """The variables that count by their bytes, as they are now."""
        found = list(self._described.tensors)
        for where, module in self._described.modules:
            found += _structure.variables(module, where, skipped)
        return _unique(found)


def default_module_id(subject: Any) -> str:
    """The class name of a module, or the name of a function with that of its Python module."""
    subject = getattr(subject, "func", subject)
    if isinstance(subject, torch.jit.ScriptModule):
        return module_id_of(str(getattr(subject, "original_name", type(subject).__name__)))
    named = hasattr(subject, "__qualname__") or hasattr(subject, "__name__")
    return module_id_of(qualified_name(subject) if named else type(subject).__name__)


def _describe(described: Describer, subject: Any, given: Given) -> str:
    if isinstance(subject, torch.nn.Module):
        return described.module("", subject, given.source)
    if given.source is False:
        described.reasons.append("its source does not count (`source=False`)")
        return qualified_name(subject)
    return described.callable("", subject)


def constructor_arguments(values: Mapping[str, Any]) -> dict[str, str]:
    """The lines of the arguments that an instance was constructed with. Tensors count by their bytes."""
    return {
        f"constructor argument {name}": named(name, value, lambda item: canonical(item, _not_plain))
        for name, value in values.items()
    }


def _argument(value: Any) -> str:
    # A text is itself, as in the other adapters.
    return value if isinstance(value, str) else canonical(value, _not_plain)


def _not_plain(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return digest_of_array(value)
    return qualified_name(value if isinstance(value, type) or callable(value) else type(value))


def _digest(name: str, value: Any) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return digest_of(bytes(value))
    if isinstance(value, str):
        return digest_of(value)
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return digest_of_array(value)
    raise TypeError(f"fingerprint[{name!r}] is a {type(value).__name__}: expected bytes, str, a tensor or an array")


def _unique(variables: list[Variable]) -> list[Variable]:
    """The variables under names of their own."""
    taken: dict[str, int] = {}
    result = []
    for name, tensor, owner, key in variables:
        taken[name] = taken.get(name, 0) + 1
        result.append((name if taken[name] == 1 else f"{name} #{taken[name]}", tensor, owner, key))
    return result
