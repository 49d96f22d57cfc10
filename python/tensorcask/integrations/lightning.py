"""A callback for Lightning that logs hits of cached modules.

    trainer = lightning.Trainer(callbacks=[tensorcask.integrations.lightning.CacheCallback()])

Each rank of a distributed job writes in a lane of its own and reads the outputs of all, without further settings.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any


def _callback_class() -> Any:
    """The base class of callbacks, of whichever of the two packages is installed."""
    missing: ImportError | None = None
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(package).Callback
        except ModuleNotFoundError as error:
            missing = error
    raise ImportError(
        "tensorcask.integrations.lightning needs Lightning: install it with `pip install tensorcask[lightning]`"
    ) from missing


Callback: Any = _callback_class()

__all__ = ["CacheCallback"]


class CacheCallback(Callback):  # type: ignore[misc]
    """Ends the epoch of each cached module with the training epoch: logs its counters and flushes its outputs.

    It finds the cached modules inside the ``LightningModule``. With several, their ``module_id`` is part of the
    metrics' names. Logged are ``<prefix>/hit_rate``, ``hits``, ``misses`` and ``saved_s`` (seconds of computation that
    hits saved). An epoch includes its validation. Outputs are flushed when training ends with an exception as well.

    Args:
        caches: Further cached modules or functions, which the ``LightningModule`` does not contain.
        prefix: The first part of the metrics' names.
        log: Whether metrics are logged; outputs are flushed in any case.
        sync_dist: Whether ``hit_rate`` and the others are averaged over the ranks. Otherwise each logger shows its own.
    """

    _METRICS = ("hit_rate", "hits", "misses", "saved_s")

    def __init__(
        self, caches: Sequence[Any] = (), *, prefix: str = "cache", log: bool = True, sync_dist: bool = False
    ) -> None:
        super().__init__()
        self._caches = list(caches)
        self._prefix = prefix
        self._log = log
        self._sync_dist = sync_dist

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the counters of the epoch and flushes."""
        caches = list(self._all(pl_module))
        for cache in caches:
            stats = cache.end_epoch()
            cache.flush()
            if self._log:
                parts = [self._prefix, cache.module_id] if len(caches) > 1 else [self._prefix]
                metrics = {"/".join([*parts, name]): float(stats[name]) for name in self._METRICS}
                pl_module.log_dict(metrics, on_step=False, on_epoch=True, sync_dist=self._sync_dist, batch_size=1)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Flushes what was computed before the exception."""
        self._flush(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Flushes at the end of training, validation, test or prediction."""
        self._flush(pl_module)

    def _flush(self, pl_module: Any) -> None:
        for cache in self._all(pl_module):
            cache.flush()

    def _all(self, pl_module: Any) -> Iterator[Any]:
        inside = [module for module in pl_module.modules() if callable(getattr(type(module), "end_epoch", None))]
        seen: set[int] = set()
        for cache in [*inside, *self._caches]:
            if id(cache) not in seen:
                seen.add(id(cache))
                yield cache
