"""Kept outputs in memory and on disk, each up to a number of bytes. The newest are left out when it is reached."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from .._store import ValueStore
from ._settings import Settings

logger = logging.getLogger(__name__)


class MemoryRows:
    """Outputs in memory, on the device of the settings, in the dtype of the settings."""

    def __init__(self, settings: Settings) -> None:
        self.rows: dict[str, torch.Tensor] = {}
        self.device, self.dtype = settings.memory_cache_device, settings.cache_dtype
        self.limit_bytes = settings.max_memory_cache_size
        self.size_bytes = 0
        self.is_full = False
        self._dtypes: dict[str, torch.dtype] = {}

    def get(self, key: str) -> torch.Tensor | None:
        """The output of a key, in the dtype that the module returned it in."""
        row = self.rows.get(key)
        return None if row is None else row.to(self._dtypes.get(key, row.dtype))

    def put(self, keys: list[str], outputs: torch.Tensor) -> None:
        """Keeps the outputs that there is room for."""
        dtype = self.dtype or outputs.dtype
        width = outputs[:1].numel() * dtype.itemsize
        for key, output in zip(keys, outputs.detach().unbind(0), strict=True):
            if key in self.rows:
                continue
            if self.is_full or self.size_bytes + width >= self.limit_bytes:
                if not self.is_full:
                    logger.warning("Memory cache is full, skipping caching to memory")
                self.is_full = True
                return
            self.rows[key] = output.to(self.device or output.device, dtype, copy=True)
            if dtype != output.dtype:
                self._dtypes[key] = output.dtype
            self.size_bytes += width


class DiskRows:
    """Outputs in a store. The limit counts what this process has put."""

    def __init__(self, settings: Settings, folder: Path, name: str) -> None:
        self.limit_bytes = settings.max_persistent_cache_size
        self.size_bytes = 0
        self.is_full = False
        # A cast to another kind of number is no loss of precision that the store could undo, so it is done here.
        floating = settings.cache_dtype is None or settings.cache_dtype.is_floating_point
        self._cast = None if floating else settings.cache_dtype
        options: dict[str, Any] = {"store_as": settings.cache_dtype if floating else None, "restore_dtype": True}
        if settings.zstd_compression:
            options["codec"] = f"zstd:{settings.zstd_compression_level}"
        self._store = ValueStore(folder, name, writes=True, **options)

    def get(self, keys: list[str]) -> list[torch.Tensor | None]:
        """The output of each key."""
        return self._store.read(keys)

    def put(self, keys: list[str], outputs: torch.Tensor) -> None:
        """Stores the outputs that there is room for, and returns when they are in the store's files."""
        outputs = outputs.detach().cpu()
        width = outputs[:1].nbytes + len(keys[0])
        room = max(int((self.limit_bytes - self.size_bytes) // width), 0)
        if room < len(keys) and not self.is_full:
            logger.warning("Persistent cache is full, skipping caching to file")
            self.is_full = True
            keys, outputs = keys[:room], outputs[:room]
        elif self.is_full:
            return
        if keys:
            self._store.put_rows(keys, outputs if self._cast is None else outputs.to(self._cast))
            self._store.flush()
            self.size_bytes += width * len(keys)

    def close(self) -> None:
        """Closes the store."""
        self._store.close()
