"""Values that wait to be written, and the threads that write them."""

from __future__ import annotations

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..._errors import TensorcaskError, TensorcaskWarning
from ._segments import SegmentStore

_PENDING_FLUSHES_MAX = 4
"""A put waits for the disk if more than this number of flushes is pending."""


class PendingWrites:
    """Collects values, and writes them to the store once `flush_every` of them are there.

    Pending values are found by `get` until the store holds them. They are written in the order of the puts, whatever
    the number of threads, so the newest value of a key wins.
    """

    def __init__(self, store: SegmentStore, flush_every: int, max_workers: int) -> None:
        self._store, self._flush_every, self._max_workers = store, max(flush_every, 1), max_workers
        self._warned = False
        self._begin()

    def _begin(self) -> None:
        """The state of a process that has put nothing."""
        # The garbage collector may call `close` in a thread that holds them.
        self._lock, self._write_lock = threading.RLock(), threading.RLock()
        self._pending: dict[str, Any] = {}
        self._writing: dict[str, Any] = {}
        self._failure: TensorcaskError | None = None
        self._scheduled = False
        self._process = os.getpid()
        self.executor = ThreadPoolExecutor(self._max_workers, "tensorcask-write") if self._max_workers else None

    def _check_process(self) -> None:
        if self._process != os.getpid():
            # The parent writes what was pending at the fork.
            self._begin()

    def add(self, items: dict[str, Any]) -> None:
        """Puts values that nobody changes any more."""
        self._check_process()
        with self._lock:
            self._pending.update(items)
            pending = len(self._pending)
            is_due = pending >= self._flush_every and not self._scheduled
            is_late = pending >= _PENDING_FLUSHES_MAX * self._flush_every
            self._scheduled |= is_due and self.executor is not None
        if self.executor is None:
            if is_due:
                self.flush()
        elif is_late:
            self._write_or_warn()
        elif is_due:
            self.executor.submit(self._write_or_warn)

    def get(self, keys: list[str]) -> list[Any | None]:
        """The pending value of each key; None for keys without one."""
        self._check_process()
        with self._lock:
            pending, writing = self._pending, self._writing
            if not pending and not writing:
                return [None] * len(keys)
            return [pending[key] if key in pending else writing.get(key) for key in keys]

    def __len__(self) -> int:
        """The number of values that are not written yet."""
        self._check_process()
        with self._lock:
            return len(self._pending)

    def flush(self) -> None:
        """Writes all pending values. Raises the error of any write since the last call."""
        self._check_process()
        self._write()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def discard(self) -> None:
        """Forgets the pending values."""
        self._check_process()
        with self._lock:
            self._pending = {}

    def close(self) -> None:
        """Flushes, ends the threads and closes the store."""
        try:
            self.flush()
        finally:
            if self.executor is not None:
                self.executor.shutdown(wait=False)
            self._store.close()

    def _write(self) -> None:
        with self._write_lock:
            with self._lock:
                batch, self._pending = self._pending, {}
                self._writing, self._scheduled = batch, False
            if not batch:
                return
            try:
                self._warn_of(self._store.write(batch))
            finally:
                with self._lock:
                    self._writing = {}

    def _write_or_warn(self) -> None:
        try:
            self._write()
        except TensorcaskError as error:
            # A training run goes on without its cache. The next flush raises the error.
            self._failure = error
            warnings.warn(f"outputs were computed but not stored: {error}", TensorcaskWarning, stacklevel=2)

    def _warn_of(self, refused: dict[str, Any]) -> None:
        if refused and not self._warned:
            self._warned = True
            key, reason = next(iter(refused.items()))
            warnings.warn(
                f"the value of the key {key!r} stays in memory only, in the LRU cache, and is computed again in other "
                f"processes: {reason}", TensorcaskWarning, stacklevel=2,
            )  # fmt: skip
