"""The decorator."""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable
from typing import Any

import torch

from ._cache import _TorchCache
from ._settings import Settings
from ._wrap import wrap_class, wrap_function, wrap_module

__all__ = ["_TorchCache", "torchcache"]


def torchcache(
    target: Any = None,
    /,
    *,
    enabled: bool = True,
    memory_cache_device: str | torch.device | None = "cpu",
    subsample_count: int = 10000,
    persistent: bool = False,
    persistent_cache_dir: str | os.PathLike[str] | None = None,
    persistent_module_hash: str | None = None,
    max_persistent_cache_size: float = int(10e9),
    max_memory_cache_size: float = int(1e9),
    zstd_compression: bool = False,
    zstd_compression_level: int = 3,
    zstd_compression_threads: int = 1,
    cache_dtype: torch.dtype | None = None,
    use_mmap_on_load: bool = False,
) -> Any:
    """Caches the outputs of a module or function, one a sample. It decorates classes, modules and functions.

        @torchcache(persistent=True, persistent_cache_dir="cache")
        class Backbone(nn.Module): ...

        @torchcache()
        def features(images): ...

        backbone = torchcache()(backbone)

    All tensors among the arguments have the same first dimension, the batch, and at least one more. Other arguments are
    of the types int, float, str and bool. The output is a tensor with a row a sample. Gradients do not flow through it.
    Samples are told apart by all of their bytes; outputs of a module whose code, constructor arguments, weights, or
    training mode changed are computed again.

    A module overrides a parameter by an attribute with the prefix `torchcache_`, which its `__init__` sets, such as
    `self.torchcache_persistent_cache_dir`. Its cache is the attribute `cache_instance`.

    Args:
        target: what is decorated, if the decorator is written without parentheses.
        enabled: whether anything is cached.
        memory_cache_device: the device of outputs in memory; None for that of the outputs.
        subsample_count: part of the module hash. All bytes are hashed, whatever it is.
        persistent: whether outputs are stored on disk too.
        persistent_cache_dir: the folder of the stores; by default a temporary folder that is removed at exit.
        persistent_module_hash: stands for the code, the arguments and the weights of the module. It names the folder.
        max_persistent_cache_size: bytes of outputs that a process stores. Further ones are left out.
        max_memory_cache_size: bytes of outputs in memory. Further ones are left out.
        zstd_compression: whether the stored outputs are compressed.
        zstd_compression_level: from -100, the fastest, to 22, the smallest.
        zstd_compression_threads: not used: each writer compresses in its own thread.
        cache_dtype: the dtype that outputs are kept in. They are returned in the dtype that they were computed in.
        use_mmap_on_load: not used: stores are always memory-mapped.

    Raises:
        TypeError: the target is neither a class of modules, nor a module, nor a function.
        ValueError: `zstd_compression` without `persistent`.
        AssertionError: a module has parameters that require gradients.
    """
    settings = Settings(
        memory_cache_device, subsample_count, persistent, persistent_cache_dir, persistent_module_hash,
        max_persistent_cache_size, max_memory_cache_size, zstd_compression, zstd_compression_level,
        zstd_compression_threads, cache_dtype, use_mmap_on_load,
    )  # fmt: skip

    def decorate(target: Any) -> Any:
        if inspect.isclass(target) and issubclass(target, torch.nn.Module):
            return wrap_class(target, settings, enabled)
        if isinstance(target, torch.nn.Module):
            return wrap_module(target, settings, enabled)
        if isinstance(target, types.FunctionType):
            return wrap_function(target, settings, enabled)
        raise TypeError(
            "torchcache can only decorate nn.Module subclasses, modules or functions: found an object of type "
            f"{type(target).__name__}"
        )

    wrapper: Callable[[Any], Any] = decorate
    return wrapper if target is None else wrapper(target)
