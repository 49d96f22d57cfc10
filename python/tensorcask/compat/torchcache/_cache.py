"""The cache of modules and functions whose outputs depend on the same code."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..._digests import digest_of
from ..._errors import InvalidError, TensorcaskWarning, TrainableError
from ..._native import digest
from ..._torch_state import autocast_text
from ._inputs import Inputs, sample_bytes
from ._rows import DiskRows, MemoryRows
from ._settings import Settings
from ._state import State

logger = logging.getLogger(__name__)

_PARAMETERS = frozenset(field.name for field in dataclasses.fields(Settings))


class TrainableModuleError(TrainableError, AssertionError):
    """A module has parameters that require gradients."""


_OF_STORE = {"store.json", "segments", "runs", "lanes", "quarantine"}


class _TorchCache:
    """Kept outputs, one a sample, in memory and, if the settings say so, in a store.

    The key of an output is 128 bits over all bytes of the sample, the other arguments, and the code, constructor
    arguments, weights and mode of the module. So a module whose weights changed misses. If `persistent_module_hash` is
    set, it stands for the code, the arguments and the weights.

    Attributes:
        module_hash: a hash of the code and the constructor arguments, which names the folder of the store.
        cache: the outputs in memory, by key.
        memory_cache_size, persistent_cache_size: bytes of outputs, the latter those that this process has put.
        is_memory_cache_full, is_persistent_cache_full: whether outputs were left out.
        cache_parent_dir, cache_dir: the folder of the stores, and that of this store, if it is persistent.
    """

    def __init__(self, settings: Settings | None = None, module_hash: str | None = None, **parameters: Any) -> None:
        """A cache with these settings, or with the parameters of `torchcache`. A hash names the folder of its store."""
        settings = Settings(**parameters) if settings is None else settings
        module_hash = module_hash or settings.persistent_module_hash or digest([settings.identity()])[0]
        settings.check()
        self._settings = settings
        self.module_hash = module_hash
        self._memory = MemoryRows(settings)
        self._disk: DiskRows | None = None
        self._lock = threading.RLock()
        self._mentioned: set[str] = set()
        logger.info("Module hash: %s", module_hash)
        if settings.persistent_module_hash is not None:
            logger.warning(
                "The module hash is %s. Changes of the module, its arguments and its weights are not noticed.",
                module_hash,
            )
        if settings.persistent:
            self._open_store()

    def _open_store(self) -> None:
        if self._settings.persistent_cache_dir is None:
            self.cache_parent_dir = Path(tempfile.mkdtemp(prefix="torchcache-"))
            atexit.register(self._clean_up_in, os.getpid())
        else:
            self.cache_parent_dir = Path(self._settings.persistent_cache_dir)
        logger.info("Torchcache parent dir: %s", self.cache_parent_dir)
        self.cache_dir = self.cache_parent_dir / self.module_hash
        self._disk = DiskRows(self._settings, self.cache_dir.parent, self.cache_dir.name)

    def __getattr__(self, name: str) -> Any:
        # The parameters of the decorator are attributes.
        if name in _PARAMETERS:
            return getattr(self._settings, name)
        raise AttributeError(f"the cache has no attribute {name!r}")

    @property
    def cache(self) -> dict[str, torch.Tensor]:
        """The outputs in memory."""
        return self._memory.rows

    @cache.setter
    def cache(self, rows: dict[str, torch.Tensor]) -> None:
        self._memory.rows = rows

    @property
    def memory_cache_size(self) -> int:
        """Bytes of outputs in memory."""
        return self._memory.size_bytes

    @property
    def is_memory_cache_full(self) -> bool:
        """Whether outputs were left out of memory."""
        return self._memory.is_full

    @property
    def persistent_cache_size(self) -> int:
        """Bytes of outputs that this process has put into the store."""
        return 0 if self._disk is None else self._disk.size_bytes

    @property
    def is_persistent_cache_full(self) -> bool:
        """Whether outputs were left out of the store."""
        return self._disk is not None and self._disk.is_full

    def call(self, state: State, compute: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs of a call, kept or computed, on the device of the inputs and without gradients.

        Raises:
            InvalidError: the arguments cannot be cached by sample, or the output is no tensor with a row a sample.
        """
        inputs = Inputs.of(args, kwargs)
        if len(inputs) == 0 or state.is_running():
            # A subclass that calls the forward of its base caches the whole, not the part.
            return compute(*args, **kwargs)
        if state.is_trainable():
            self._mention("a parameter requires gradients, so the module is computed with them and not cached")
            return compute(*args, **kwargs)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs.tensors):
            self._mention("an input requires gradients, which do not flow through cached outputs")
        fixed = self._settings.persistent_module_hash is not None
        context = f"{self.module_hash if fixed else state.digest()} {autocast_text()}"
        keys = inputs.keys(context, state.signature)
        rows = self._get(keys)
        missing = [at for at, row in enumerate(rows) if row is None]
        logger.debug("%s of %s samples are cached", len(keys) - len(missing), len(keys))
        if missing:
            outputs = self._compute(state, compute, inputs, missing)
            if not fixed and state.weights_changed():
                self._mention(
                    "the module changed its own variables while it ran, such as batch statistics in training mode, so "
                    "its outputs are not cached: call eval() on it"
                )
            else:
                self._put([keys[at] for at in missing], outputs)
            if len(missing) == len(keys):
                return outputs
            for at, output in zip(missing, outputs.unbind(0), strict=True):
                rows[at] = output
        return torch.stack([row.to(inputs.device) for row in rows if row is not None])

    def _compute(self, state: State, compute: Callable[..., Any], inputs: Inputs, missing: list[int]) -> torch.Tensor:
        args, kwargs = inputs.select(missing)
        with torch.no_grad(), state.running():
            outputs = compute(*args, **kwargs)
        if not isinstance(outputs, torch.Tensor):
            raise InvalidError(
                f"the output is of type {type(outputs).__name__}: torchcache caches single tensors; tensorcask.cache() "
                "caches nested outputs too"
            )
        if outputs.ndim == 0 or outputs.shape[0] != len(missing):
            raise InvalidError(
                f"the output has the shape {list(outputs.shape)} for {len(missing)} samples: its first dimension has to "
                "be the batch"
            )
        return outputs

    def _get(self, keys: list[str]) -> list[torch.Tensor | None]:
        with self._lock:
            rows = [self._memory.get(key) for key in keys]
            absent = [at for at, row in enumerate(rows) if row is None]
            if self._disk is None or not absent:
                return rows
            found = self._disk.get([keys[at] for at in absent])
            for at, row in zip(absent, found, strict=True):
                if row is not None:
                    rows[at] = row
                    self._memory.put([keys[at]], row.unsqueeze(0))
            return rows

    def _put(self, keys: list[str], outputs: torch.Tensor) -> None:
        with self._lock:
            if self._disk is not None:
                self._disk.put(keys, outputs)
            self._memory.put(keys, outputs)

    def _mention(self, what: str) -> None:
        if what not in self._mentioned:
            self._mentioned.add(what)
            warnings.warn(what, TensorcaskWarning, stacklevel=4)

    def hash_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A hash of each row, over all of its bytes: 63 bits of the 128 that keys have."""
        hashes = [int(text, 16) & (2**63 - 1) for text in digest(sample_bytes(tensor))]
        return torch.tensor(hashes, dtype=torch.long, device=tensor.device)

    def cache_cleanup(self) -> None:
        """Removes the store of a persistent cache, and the folder of stores if nothing else is in it.

        What this package did not write is left there, with a warning.
        """
        if self._disk is None:
            return
        logger.info("Cleaning up the persistent cache in %s", self.cache_parent_dir)
        self._disk.close()
        if self._settings.persistent_cache_dir is None:
            shutil.rmtree(self.cache_parent_dir, ignore_errors=True)
            return
        found = {path.name for path in self.cache_dir.iterdir()} if self.cache_dir.is_dir() else set()
        set_aside = self.cache_dir / "quarantine"
        others = found - _OF_STORE or (set_aside.is_dir() and {path.name for path in set_aside.iterdir()})
        if others:
            logger.warning("%s is left, as it holds other files: %s", self.cache_dir, ", ".join(sorted(others)))
            return
        shutil.rmtree(self.cache_dir, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.cache_parent_dir.rmdir()

    def _clean_up_in(self, process: int) -> None:
        # A forked child leaves the folder to its parent.
        if process == os.getpid():
            self.cache_cleanup()

    def __deepcopy__(self, memo: dict[int, Any]) -> _TorchCache:
        # Copies of a module share its outputs.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_TorchCache, (self._settings, self.module_hash))


def module_hash_of(state: State, settings: Settings) -> str:
    """64 hexadecimal digits over the code, the constructor arguments and the settings."""
    return hashlib.blake2b(f"{state.code()} {settings.identity()}".encode(), digest_size=32).hexdigest()


class Caches:
    """The caches of a decorated class or function: one for each code, constructor arguments and settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._caches: dict[str, _TorchCache] = {}
        self._lock = threading.Lock()

    def of(self, state: State, settings: Settings) -> _TorchCache:
        """The cache of a module or function, shared with all that are alike."""
        settings.check()
        module_hash = settings.persistent_module_hash or module_hash_of(state, settings)
        with self._lock:
            key = digest_of(f"{module_hash} {settings!r}")
            if key not in self._caches:
                self._caches[key] = _TorchCache(settings, module_hash)
            return self._caches[key]
