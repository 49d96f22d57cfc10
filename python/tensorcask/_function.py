"""A cached function."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar

from torch import nn

from ._handle import Handle
from ._methods import CacheMethods, keyword_names
from ._run import freeze, runner, taken
from ._torch_state import is_exporting, is_symbolic, not_compiled

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class CachedFunction(CacheMethods, Generic[_Parameters, _Result]):
    """A function whose output for a sample is computed once.

    The function's code counts: its source, its defaults, its closure variables, the functions and classes of your own
    that it calls, and the values of global variables that it reads. Of variables that the function itself changes, and
    of code in installed packages, nothing counts. Tensors and modules among the values count by their bytes, and are
    watched for changes. Names that are imported within the function are not seen.
    """

    def __init__(
        self,
        function: Callable[_Parameters, _Result],
        folder: str | os.PathLike[str] | None,
        module_id: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        options = dict(options or {})
        _refuse(function)
        functools.update_wrapper(self, function, updated=())
        module = getattr(function, "__self__", None)
        self._module = module if isinstance(module, nn.Module) else None
        if self._module is not None:
            freeze(self._module, options)
        run = runner(self._module, function) if self._module is not None else _plain(function)
        self._function = function
        self._handle = Handle(function, run, folder, module_id, options)
        self._handle.ids_name, self._handle.variant_name = keyword_names(function, options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ids, variant = taken(self._handle, kwargs)
        if is_exporting():
            return self._function(*args, **kwargs)
        return self._lookup(args, kwargs, ids, variant)

    @not_compiled
    def _lookup(self, args: tuple[Any, ...], kwargs: dict[str, Any], ids: Any, variant: int) -> Any:
        if is_symbolic(args, kwargs):
            return self._function(*args, **kwargs)
        return self._handle.call(args, kwargs, ids, variant, False)

    def unwrap(self) -> Callable[_Parameters, _Result]:
        """The function itself."""
        return self._function

    def _tensorcask_handle(self) -> Handle:
        return self._handle

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        name = getattr(self, "__name__", "method")
        raise TypeError(
            f"the method {name} of {type(instance).__name__} was decorated, so `self` would be an argument: decorate "
            f"the class, or cache the bound method in __init__: self.{name} = tensorcask.cache(self.{name}, folder)"
        )

    def __repr__(self) -> str:
        handle = self._handle
        return f"CachedFunction({self._function!r}, module_id={handle.module_id!r}, folder={handle.given_folder!r})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        # A decorated function is found under its own name.
        found: Any = sys.modules.get(getattr(self, "__module__", ""))
        name = getattr(self, "__qualname__", "")
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is self:
            return str(name)
        handle = self._handle
        options = {**handle.options, "enabled": handle.enabled}
        return type(self), (self._function, handle.given_folder, handle.given_module_id, options)

    def __copy__(self) -> CachedFunction[_Parameters, _Result]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedFunction[_Parameters, _Result]:
        # As functions, which are not copied.
        return self


def _plain(function: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any], bool], Any]:
    def run(args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
        return function(*args, **kwargs)

    return run


def _refuse(function: Any) -> None | NoReturn:
    called = getattr(function, "func", function)
    for is_kind, kind in (
        (inspect.iscoroutinefunction, "a coroutine function"),
        (inspect.isasyncgenfunction, "an asynchronous generator function"),
        (inspect.isgeneratorfunction, "a generator function"),
    ):
        if is_kind(called):
            raise TypeError(f"{function!r} is {kind}, which returns no tensors: cache a plain function")
    return None
