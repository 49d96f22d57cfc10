"""Adds a cache to classes, modules and functions."""

from __future__ import annotations

import functools
import inspect
import logging
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch

from ..._torch_state import is_exporting, is_symbolic, not_compiled
from ._cache import Caches, TrainableModuleError, _TorchCache
from ._settings import PREFIX, Settings
from ._state import ARGUMENTS, CACHE, FORWARD, ORIGINAL, State, describe_arguments

logger = logging.getLogger(__name__)

_states: weakref.WeakKeyDictionary[torch.nn.Module, State] = weakref.WeakKeyDictionary()


def wrap_class(original: type[torch.nn.Module], settings: Settings, enabled: bool) -> type[torch.nn.Module]:
    """A subclass with the name of `original`, whose instances are cached."""
    caches = Caches(settings)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original.__init__(self, *args, **kwargs)
        # A subclass of a decorated class is decorated once, by the outermost of both.
        if enabled and getattr(self, PREFIX + "enabled", True):
            vars(self)[ARGUMENTS] = describe_arguments(self, original, args, kwargs)
            attach(self, caches)
        else:
            logger.info("torchcache is disabled: nothing is cached, and nothing is looked up")

    functools.update_wrapper(__init__, original.__init__)
    return _with_forward(original, {"__init__": __init__})


def wrap_module(module: torch.nn.Module, settings: Settings, enabled: bool) -> torch.nn.Module:
    """The same module, cached from now on."""
    if enabled and getattr(module, PREFIX + "enabled", True):
        original = type(module)
        attach(module, Caches(settings))
        module.__class__ = _with_forward(original, {"__reduce_ex__": _reduce_module})
    return module


def wrap_function(function: types.FunctionType, settings: Settings, enabled: bool) -> Callable[..., Any]:
    """A function that returns kept outputs."""
    if not enabled:
        return function
    state = State(function, function)
    cache = Caches(settings).of(state, settings)

    @not_compiled
    @functools.wraps(function)
    def cached(*args: Any, **kwargs: Any) -> Any:
        if is_symbolic(args, kwargs):
            return function(*args, **kwargs)
        return cache.call(state, function, args, kwargs)

    setattr(cached, CACHE, cache)
    return cached


def attach(module: torch.nn.Module, caches: Caches) -> None:
    """Gives a module the cache that it shares with those that are alike."""
    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if trainable:
        raise TrainableModuleError(
            "TorchCache does not support modules with parameters that require gradients, such as "
            f"{trainable[0]!r}: call requires_grad_(False) at the end of __init__"
        )
    attributes = vars(module)
    if "forward" in attributes:
        # It would hide the forward of the class.
        attributes[FORWARD] = attributes.pop("forward")
    state = State(module, _forward_of(module))
    _states[module] = state
    setattr(module, CACHE, caches.of(state, caches.settings.of_module(module)))


def _with_forward(original: type[torch.nn.Module], members: dict[str, Any]) -> type[torch.nn.Module]:
    """A subclass under the name of `original`, so that instances are pickled as usual."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        compute = vars(self).get(FORWARD) or functools.partial(original.forward, self)
        if CACHE not in vars(self) or is_exporting():
            return compute(*args, **kwargs)
        return _looked_up(self, compute, args, kwargs)

    functools.update_wrapper(forward, original.forward)
    names = ("__module__", "__qualname__", "__doc__")
    own = {"forward": forward, ORIGINAL: original} | {name: getattr(original, name) for name in names}
    return type(original.__name__, (original,), own | members)


@not_compiled
def _looked_up(
    module: torch.nn.Module, compute: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if is_symbolic(args, kwargs):
        return compute(*args, **kwargs)
    cache: _TorchCache = vars(module)[CACHE]
    return cache.call(_state_of(module, compute), compute, args, kwargs)


def _state_of(module: torch.nn.Module, compute: Callable[..., Any]) -> State:
    state = _states.get(module)
    if state is None:
        # A copy, or a module that was unpickled.
        state = _states[module] = State(module, compute)
    return state


def _forward_of(module: torch.nn.Module) -> Callable[..., Any]:
    own: Callable[..., Any] | None = vars(module).get(FORWARD)
    return own if own is not None else inspect.unwrap(type(module).forward).__get__(module)


def _reduce_module(module: Any, protocol: int) -> tuple[Any, ...]:
    return (_unpickled, (getattr(type(module), ORIGINAL),), vars(module))


def _unpickled(original: type[torch.nn.Module]) -> torch.nn.Module:
    module = original.__new__(original)
    module.__class__ = _with_forward(original, {"__reduce_ex__": _reduce_module})
    return module
