"""Helpers for other libraries. Each submodule imports its library when it is first used.

- ``sentence_transformers``: ``encode`` that computes only sentences that are not kept.
- ``transformers``: outputs per token, kept without padding.
- ``datasets``: a column of a store's rows in a dataset of Hugging Face.
- ``lightning``: a callback that logs hits and flushes at the end of an epoch.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["datasets", "lightning", "sentence_transformers", "transformers"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
