"""The parameters of the decorator."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..._errors import InvalidError

if TYPE_CHECKING:
    import os

    import torch

logger = logging.getLogger(__name__)

PREFIX = "torchcache_"
"""Attributes of a module with this prefix override the parameter of that name."""


@dataclass(frozen=True)
class Settings:
    """The parameters of `torchcache`, without `enabled`."""

    memory_cache_device: str | torch.device | None = "cpu"
    subsample_count: int = 10000
    persistent: bool = False
    persistent_cache_dir: str | os.PathLike[str] | None = None
    persistent_module_hash: str | None = None
    max_persistent_cache_size: float = 10e9
    max_memory_cache_size: float = 1e9
    zstd_compression: bool = False
    zstd_compression_level: int = 3
    zstd_compression_threads: int = 1
    cache_dtype: torch.dtype | None = None
    use_mmap_on_load: bool = False

    def check(self) -> None:
        """Raises `InvalidError`, a `ValueError`, for parameters that exclude each other."""
        if self.zstd_compression and not self.persistent:
            raise InvalidError("Cannot use zstd compression without persistent cache: set persistent=True")
        if not -100 <= self.zstd_compression_level <= 22:
            raise InvalidError(f"zstd_compression_level is {self.zstd_compression_level}: it goes from -100 to 22")

    def of_module(self, module: torch.nn.Module) -> Settings:
        """These settings, with those that the module overrides by its attributes."""
        names = [field.name for field in dataclasses.fields(self) if hasattr(module, PREFIX + field.name)]
        overrides: dict[str, Any] = {name: getattr(module, PREFIX + name) for name in names}
        for name, value in overrides.items():
            logger.info("Overriding %s with %s", name, value)
        return dataclasses.replace(self, **overrides)

    def identity(self) -> str:
        """The parameters that outputs depend on, as a text."""
        return repr((self.subsample_count, self.zstd_compression, str(self.cache_dtype)))
