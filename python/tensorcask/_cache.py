"""`tensorcask.cache`: an expensive computation happens once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from . import _options
from ._options import Options

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Unpack

    from ._function import CachedFunction
    from ._module import CachedModule

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Subject = TypeVar("_Subject")
Folder = str | os.PathLike[str] | None


@overload
def cache(  # type: ignore[overload-overlap]  # a module is callable too, and the first overload takes it
    module: nn.Module, folder: Folder = None, *, module_id: str | None = None, **options: Unpack[Options]
) -> CachedModule: ...
@overload
def cache(
    module: str | os.PathLike[str] | None = None, *, module_id: str | None = None, **options: Unpack[Options]
) -> Callable[[_Subject], _Subject]: ...
@overload
def cache(
    module: Callable[_Parameters, _Result],
    folder: Folder = None,
    *,
    module_id: str | None = None,
    **options: Unpack[Options],
) -> CachedFunction[_Parameters, _Result]: ...
def cache(module: Any = None, folder: Any = None, *, module_id: str | None = None, **options: Any) -> Any:
    """Caches the outputs of a frozen module, or of a function, by sample.

    Three forms::

        backbone = tensorcask.cache(backbone, "cache")      # an nn.Module: returns a CachedModule
        embed = tensorcask.cache(embed, "cache")            # a function: returns a CachedFunction

        @tensorcask.cache("cache", module_id="embed")       # decorates a function, or a class of nn.Modules
        def embed(batch): ...

    A call looks each sample of a batch up, by ids (``backbone(images, ids=names)``) or by content
    (``backbone(images)``), computes the missing samples in one batch without gradients, keeps their outputs, and
    returns all outputs in order, with the structure, dtype, shape, device and bits that the computation returns.

    An output is found if all of these are equal: the module id; the weights and buffers; the type and configuration of
    the module; the source of your own code (`source`); `version`, `arguments`, `fingerprint` and `instance`; the
    sample's id or content; all other arguments; the variant; and the active autocast. `why_miss` tells which differs.

    Args:
        module: the module, function, bound method or callable object. A path or nothing for the decorator form.
        folder: the folder of the outputs. None: they are kept in memory.
        module_id: the name of the folder of this computation's outputs. The default is the name of the module's class,
            or of the function with that of its Python module. Name it if two computations have the same name, or if
            the class may be renamed.
        **options: see `Options`.

    Raises:
        TypeError: an option is unknown, or the object cannot be called.
        TrainableError: the module has parameters that require gradients. See `freeze` and `enforce_stateless`.
        InvalidError: an option has no possible value, or the code cannot be seen and no `version` was given.
    """
    _options.check(options)
    if module is None or isinstance(module, (str, os.PathLike)):
        if folder is not None:
            raise TypeError("cache() was called with two folders: expected cache(folder) or cache(module, folder)")
        return _decorator(module, module_id, options)
    if isinstance(module, type):
        raise TypeError(
            f"cache() was called with the class {module.__qualname__}: decorate it with @tensorcask.cache(folder), or "
            "cache an instance"
        )
    return _wrap(module, folder, module_id, options)


def _wrap(subject: Any, folder: Folder, module_id: str | None, options: dict[str, Any]) -> Any:
    nn = _require_torch()
    from ._decorated import is_decorated
    from ._function import CachedFunction
    from ._module import CachedModule

    decorated = isinstance(subject, nn.Module) and is_decorated(subject)
    if decorated or isinstance(subject, (CachedModule, CachedFunction)):
        raise TypeError(f"{type(subject).__name__} is cached already: cache what it wraps, or call it as it is")
    if not callable(subject):
        raise TypeError(f"cache() takes a module or a function, and {type(subject).__name__} is neither")
    kind = CachedModule if isinstance(subject, nn.Module) else CachedFunction
    cached = kind(subject, folder, module_id, options)
    # Mistakes show where the cache is made, not in the first call.
    cached._tensorcask_handle().open()
    return cached


def _decorator(folder: Folder, module_id: str | None, options: dict[str, Any]) -> Callable[[Any], Any]:
    def decorate(subject: Any) -> Any:
        nn = _require_torch()
        if isinstance(subject, type):
            if not issubclass(subject, nn.Module):
                raise TypeError(f"the class {subject.__qualname__} is no nn.Module: decorate a function or a module")
            from ._decorated import decorate as decorate_class

            return decorate_class(subject, folder, module_id, options)
        if not callable(subject):
            raise TypeError(f"@tensorcask.cache decorates functions and classes, not {type(subject).__name__}")
        from ._function import CachedFunction

        # What the function uses may be defined after it, so the first call opens the cache.
        return CachedFunction(subject, folder, module_id, options)

    return decorate


def _require_torch() -> Any:
    try:
        from torch import nn
    except ImportError as error:
        raise ImportError("tensorcask.cache needs PyTorch: pip install tensorcask[torch]") from error
    return nn
