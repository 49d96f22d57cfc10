"""The interface of the package `torchcache` 0.6, on a tensorcask store.

    from tensorcask.compat.torchcache import torchcache

    @torchcache(persistent=True, persistent_cache_dir="cache")
    class Backbone(nn.Module): ...

The environment variables `TORCHCACHE_LOG_LEVEL`, `TORCHCACHE_LOG_FMT`, `TORCHCACHE_LOG_DATEFMT` and
`TORCHCACHE_LOG_FILE` configure logging, as `set_logger_config` does.
"""

from __future__ import annotations

from .. import _torch  # noqa: F401 - says what to install if PyTorch is missing
from .logging import configure_at_import, set_logger_config
from .torchcache import torchcache

__all__ = ["set_logger_config", "torchcache"]

configure_at_import()
