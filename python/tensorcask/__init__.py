"""Computes the outputs of a frozen module once per sample, and keeps them.

::

    import tensorcask as tc

    backbone = tc.cache(backbone, "cache", module_id="vit-b16")
    features = backbone(images, ids=batch["id"])     # by stable ids
    features = backbone(images)                      # or by content

    with tc.open("cache", "embeddings") as store:    # rows under keys, without a module
        store.put(["a", "b"], rows)
        rows = store.take(["b", "a"])
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from ._errors import (
    CorruptError,
    ForkedError,
    FullError,
    InvalidError,
    KeyMissingError,
    LockedError,
    MismatchError,
    NotReproducibleError,
    ReadOnlyError,
    StoreIOError,
    TensorcaskError,
    TensorcaskWarning,
    TrainableError,
    VersionError,
)
from ._native import Store, WhyMiss, __version__, _before_fork, digest, open, shared

if TYPE_CHECKING:
    from . import compat, data, integrations, ops
    from ._cache import cache
    from ._options import Options

__all__ = [
    "CorruptError",
    "ForkedError",
    "FullError",
    "InvalidError",
    "KeyMissingError",
    "LockedError",
    "MismatchError",
    "NotReproducibleError",
    "Options",
    "ReadOnlyError",
    "Store",
    "StoreIOError",
    "TensorcaskError",
    "TensorcaskWarning",
    "TrainableError",
    "VersionError",
    "WhyMiss",
    "__version__",
    "cache",
    "compat",
    "data",
    "digest",
    "integrations",
    "open",
    "ops",
    "shared",
]

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)

_MODULES = ("compat", "data", "integrations", "ops")


def __getattr__(name: str) -> Any:
    # What needs PyTorch is imported when it is first used.
    if name == "cache":
        from ._cache import cache

        globals()["cache"] = cache
        return cache
    if name == "Options":
        from ._options import Options

        return Options
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
