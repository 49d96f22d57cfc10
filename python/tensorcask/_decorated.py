"""Decorated classes: their instances are cached."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from . import _options
from ._handle import Handle
from ._identity import constructor_arguments
from ._methods import CacheMethods, keyword_names
from ._run import freeze, is_stateless, run_traced, runner, taken
from ._structure import SLOT
from ._torch_state import is_exporting, is_symbolic, not_compiled

_Module = TypeVar("_Module", bound=nn.Module)
_DECORATION = "_tensorcask_decoration"
_WRAPPED = "_tensorcask_wrapped"


class _Slot:
    """What an instance keeps: its constructor arguments, and its handle, which copies do not share."""

    def __init__(self, arguments: dict[str, str] | None = None) -> None:
        self.arguments = arguments or {}
        self.handle: Handle | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Slot, (self.arguments,)


class _Decoration:
    """How the instances of a decorated class, and of classes derived from it, are cached."""

    def __init__(
        self,
        kind: type[nn.Module],
        folder: str | os.PathLike[str] | None,
        module_id: str | None,
        options: Mapping[str, Any],
    ) -> None:
        self.folder, self.module_id, self.options = folder, module_id, options
        self.call: Callable[..., Any] = kind.__call__
        self.train: Callable[..., Any] = kind.train

    def handle(self, instance: nn.Module) -> Handle:
        """The handle of an instance, which its first call opens, as weights are loaded after construction."""
        slot: _Slot = vars(instance).setdefault(SLOT, _Slot())
        if slot.handle is None:
            run = runner(instance, functools.partial(self.call, instance))
            made = Handle(instance, run, self.folder, self.module_id, self.options, lambda: slot.arguments)
            made.ids_name, made.variant_name = keyword_names(instance.forward, self.options)
            slot.handle = made
        return slot.handle

    def is_training(self, instance: nn.Module) -> bool:
        """Whether calls bypass the cache."""
        return bool(instance.training) and not is_stateless(self.options)


def decorate(
    kind: type[_Module], folder: str | os.PathLike[str] | None, module_id: str | None, options: Mapping[str, Any]
) -> type[_Module]:
    """Makes calls of the class's instances cached, and adds the methods of `CacheMethods` that it does not have.

    The class itself is changed, so that its name, `super()`, `isinstance` and pickles stay as they are.
    """
    _options.check(options)
    _options.native_options(folder, options)
    if _DECORATION in vars(kind):
        raise TypeError(f"the class {kind.__qualname__} is cached already")
    setattr(kind, _DECORATION, _Decoration(kind, folder, module_id, options))
    _wrap_init(kind)
    for name, method in (("__call__", _call), ("train", _train), ("_tensorcask_handle", _handle),
                         ("_tensorcask_training", _training), ("__init_subclass__", _subclass_hook(kind))):
        setattr(kind, name, method)
    added = {name for name in vars(CacheMethods) if not name.startswith("_")} | {"__enter__", "__exit__"}
    # A length makes an empty cache false, unless the truth is defined too.
    added |= {"__len__", "__bool__"} if not hasattr(kind, "__len__") else set()
    for name in added:
        if not hasattr(kind, name):
            setattr(kind, name, vars(CacheMethods)[name])
    return kind


def is_decorated(module: nn.Module) -> bool:
    """Whether the module's class is decorated, or derived from one that is."""
    return hasattr(type(module), _DECORATION)


def _decoration(instance: nn.Module) -> _Decoration:
    found: _Decoration = getattr(type(instance), _DECORATION)
    return found


def _handle(self: nn.Module) -> Handle:
    return _decoration(self).handle(self)


def _training(self: nn.Module) -> bool:
    return _decoration(self).is_training(self)


def _call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    decoration = _decoration(self)
    if is_exporting():
        return decoration.call(self, *args, **kwargs)
    return _lookup(self, args, kwargs)


@not_compiled
def _lookup(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    decoration = _decoration(self)
    handle = decoration.handle(self)
    ids, variant = taken(handle, kwargs)
    if is_symbolic(args, kwargs):
        return run_traced(self, functools.partial(decoration.call, self), args, kwargs)
    return handle.call(args, kwargs, ids, variant, decoration.is_training(self))


def _train(self: nn.Module, mode: bool = True) -> nn.Module:
    """Has no effect on a cached module, which stays in evaluation mode, unless `enforce_stateless` is off."""
    decoration = _decoration(self)
    decoration.train(self, mode and not is_stateless(decoration.options))
    return self


def _wrap_init(kind: type[nn.Module]) -> None:
    """Records the arguments of the outermost constructor, and sets the module's modes when it is done."""
    original = vars(kind).get("__init__")
    if getattr(original, _WRAPPED, False):
        return
    construct: Callable[..., None] = original if original is not None else functools.partial(_inherited_init, kind)

    def __init__(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        is_outermost = SLOT not in vars(self)
        if is_outermost:
            vars(self)[SLOT] = _Slot(constructor_arguments(_bound(construct, self, args, kwargs)))
        construct(self, *args, **kwargs)
        if is_outermost:
            freeze(self, _decoration(self).options)

    if original is not None:
        __init__ = functools.wraps(original)(__init__)
    setattr(__init__, _WRAPPED, True)
    setattr(kind, "__init__", __init__)


def _inherited_init(kind: type[nn.Module], self: nn.Module, *args: Any, **kwargs: Any) -> None:
    super(kind, self).__init__(*args, **kwargs)


def _bound(construct: Callable[..., None], self: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name, with defaults. Those that do not fit are reported by the constructor itself."""
    try:
        given = inspect.signature(construct).bind(self, *args, **kwargs)
    except (TypeError, ValueError):
        return dict(kwargs) | {str(position): value for position, value in enumerate(args)}
    given.apply_defaults()
    return dict(list(given.arguments.items())[1:])


def _subclass_hook(kind: type[nn.Module]) -> Any:
    inherited = vars(kind).get("__init_subclass__")

    def __init_subclass__(cls: type[nn.Module], **kwargs: Any) -> None:
        if inherited is not None:
            inherited.__get__(None, cls)(**kwargs)
        else:
            super(kind, cls).__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            _wrap_init(cls)

    hook: Any = __init_subclass__
    return classmethod(hook)
