"""The interface of the package `torchcachex` 0.2, on a tensorcask store.

    from tensorcask.compat.torchcachex import ArrowIPCCacheBackend, CacheModuleDecorator

    backend = ArrowIPCCacheBackend(cache_dir="cache", module_id="resnet50-features-v1")
    cached = CacheModuleDecorator(feature_extractor, backend)
    features = cached(batch["image"], cache_ids=batch["cache_ids"])

Rows lie in a tensorcask store in `cache_dir/module_id`, which `tensorcask.open(cache_dir, module_id)` opens as well.
Segments that `torchcachex` wrote there are brought over by the command `tensorcask import-torchcachex`.
"""

from __future__ import annotations

from .. import _torch  # noqa: F401 - says what to install if PyTorch is missing
from .backend import ArrowIPCCacheBackend
from .decorator import CacheModuleDecorator

__version__ = "0.2.0"
"""The version of `torchcachex` whose interface this is."""

__all__ = ["ArrowIPCCacheBackend", "CacheModuleDecorator", "__version__"]
