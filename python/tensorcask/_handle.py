"""The handle of a wrapped computation: opens the native handle when it is needed, and reopens it when it has to."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from . import _native, _options, _structure
from ._errors import InvalidError, TensorcaskWarning
from ._identity import Given, Identity, default_module_id
from ._torch_state import AUTOCAST, autocast_as, autocast_text

_log = logging.getLogger("tensorcask")
_COUNTS = ("hits", "misses", "duplicates", "waited", "not_kept", "damaged", "verified", "bypassed", "read_bytes",
           "put_bytes", "compute_s", "saved_s")
_PROGRESS_INTERVAL_S = 1.0

_handles: weakref.WeakSet[Handle] = weakref.WeakSet()
# Native handles of the parent process. A child must not drop them, as their threads do not exist there.
_of_parent: list[Any] = []


class Handle:
    """Caches one computation.

    `subject` is the module or function that identifies the computation, `run(args, kwargs, training)` runs it.
    `constructor` returns the lines of constructor arguments. The native handle is opened by the first call, or by
    `open`. It is opened again if what identifies the computation was rebound, and in a child process after a fork.
    """

    def __init__(
        self,
        subject: Any,
        run: Callable[[tuple[Any, ...], dict[str, Any], bool], Any],
        folder: str | os.PathLike[str] | None,
        module_id: str | None,
        options: Mapping[str, Any],
        constructor: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        _options.check(options)
        self.subject = subject
        self.options = dict(options)
        self.given_folder = None if folder is None else os.fspath(folder)
        self.given_module_id = module_id
        self.ids_name: str | None = None
        self.variant_name: str | None = None
        self._run = run
        self._constructor = constructor
        self._native_options = _options.native_options(folder, options)
        if options.get("ids_from") is not None:
            self._native_options["ids_from"] = _without_autocast(options["ids_from"])
        self._lock = threading.RLock()
        self._native: _native.Cached | None = None
        self._identity: Identity | None = None
        self._opening: Identity | None = None
        self._closed = False
        self._stale = False
        self._enabled = bool(options.get("enabled", True))
        self._warned = 0
        self._computed = False
        self._damaged = 0
        self._written: set[tuple[int, str]] = set()
        self._listed: list[tuple[str, int, int]] = []
        self._retired = dict.fromkeys(_COUNTS, 0)
        self._epoch: tuple[int, dict[str, Any]] = (0, dict.fromkeys(_COUNTS, 0))
        self._shown_s = 0.0
        self._shown: dict[str, Any] = dict(self._retired)
        _handles.add(self)

    # Opening

    def open(self) -> _native.Cached:
        """The native handle of the present identity."""
        native = self._native
        if native is not None and not self._is_outdated():
            return native
        with self._lock:
            if self._closed:
                raise InvalidError(f"the cache of {self.module_id!r} is closed: wrap the module again")
            # Another thread may have opened it meanwhile.
            native = self._native
            return native if native is not None and not self._is_outdated() else self._reopen()

    def _is_outdated(self) -> bool:
        return self._stale or self._identity is None or self._identity.changed()

    def _reopen(self) -> _native.Cached:
        identity, before, native = self._identify(), self._identity, self._native
        if native is not None and before is not None and before.settings == identity.settings:
            # What was rebound describes itself in the same way. Its variables may be other objects.
            is_stale, self._identity, self._stale = self._stale, identity, False
            if is_stale or self._listed != _places(identity.variables(self._is_written)):
                native.weights_changed()
            return native
        # The native handle must not keep this one alive, which owns it.
        owner = weakref.ref(self)
        self._opening = identity
        try:
            opened = _native.Cached(
                _method_of(owner, "_compute"),
                variables=_method_of(owner, "_variables") if identity.watches else None,
                settings=identity.settings,
                folder=self.given_folder,
                options=self._native_options,
            )
        finally:
            self._opening = None
        opened.enabled = self._enabled
        if native is not None:
            self._retire(native)
        self._identity, self._native, self._stale = identity, opened, False
        self._warned = self._damaged = 0
        self._warn()
        return opened

    def _identify(self) -> Identity:
        given = {name: self.options[name] for name in _options.IDENTITY if name in self.options}
        return Identity(self.subject, Given(module_id=self.given_module_id, **given), self._constructor())

    def _variables(self) -> list[_structure.Variable]:
        identity = self._opening or self._identity
        found = [] if identity is None else identity.variables(self._is_written)
        self._listed = _places(found)
        return found

    def _is_written(self, module: Any, key: str) -> bool:
        return (id(module), key) in self._written

    def _retire(self, native: _native.Cached) -> None:
        counts = native.stats()
        self._retired = {name: self._retired[name] + counts[name] for name in _COUNTS}

    def leave_parent(self) -> None:
        """Drops what belongs to the parent process, in the child after a fork. The next call opens a new handle."""
        _of_parent.append(self._native)
        self._lock = threading.RLock()
        self._native, self._identity = None, None
        self._warned = self._damaged = 0
        self._retired = dict.fromkeys(_COUNTS, 0)
        self._epoch = (0, dict(self._retired))

    # Calls

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
        self._computed = True
        autocast = kwargs.pop(AUTOCAST, None)
        identity = self._identity
        modules = identity.modules if identity is not None and not training else []
        before = [_structure.plain_tensors(module) for module in modules]
        with autocast_as(autocast):
            output = self._run(args, kwargs, training)
        for module, found in zip(modules, before, strict=True):
            # Tensors that the computation itself assigns are results, not weights.
            after = _structure.plain_tensors(module)
            self._written |= {at for at, tensor in after.items() if found.get(at) is not tensor}
        if identity is not None:
            identity.accept()
        return output

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], ids: Any, variant: int, training: bool) -> Any:
        """Looks a batch up, and computes what is missing."""
        native = self.open()
        output = native.call(args, self._keyed(kwargs), ids=ids, variant=variant, training=training)
        self._after(native)
        return output

    def lazy(
        self, ids: Any, load: Any, tensors: int | Sequence[str], kwargs: dict[str, Any], variant: int, device: Any
    ) -> Any:
        """Looks ids up, and loads the inputs of those that are missing."""
        native = self.open()
        given = self._keyed(kwargs)
        output = native.lazy(ids, load, tensors=tensors, kwargs=given, variant=variant, device=device)
        self._after(native)
        return output

    def contains(self, args: tuple[Any, ...], kwargs: dict[str, Any], ids: Any, variant: int) -> list[bool]:
        """Whether each sample is kept."""
        return self.open().contains(args, self._keyed(kwargs), ids=ids, variant=variant)

    def why_miss(self, args: tuple[Any, ...], kwargs: dict[str, Any], ids: Any, variant: int) -> Any:
        """Why a sample is missing."""
        return self.open().why_miss(args, self._keyed(kwargs), ids=ids, variant=variant)

    def _keyed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if AUTOCAST in kwargs:
            raise InvalidError(f"an argument is named {AUTOCAST!r}, which is reserved: rename it")
        autocast = autocast_text()
        return kwargs if autocast is None else {**kwargs, AUTOCAST: autocast}

    def _after(self, native: _native.Cached) -> None:
        self._warn()
        # Damage always leads to a computation.
        if self._computed:
            self._computed = False
            self._warn_of_damage(native)
        if self.options.get("progress"):
            self._progress()

    def _warn(self) -> None:
        if self._native is not None:
            for warning in self._native.warnings()[self._warned:]:
                self._warned += 1
                warnings.warn(warning, TensorcaskWarning, stacklevel=_levels_to_user())

    def _warn_of_damage(self, native: _native.Cached) -> None:
        damaged = native.stats()["damaged"]
        if damaged > self._damaged:
            rows, self._damaged = damaged - self._damaged, damaged
            warning = (
                f"{rows} damaged rows of the cache of {self.module_id!r} were computed again: check the disk, and run "
                f"`tensorcask verify {native.folder}` to see what is damaged"
            )
            warnings.warn(warning, TensorcaskWarning, stacklevel=_levels_to_user())

    # Counts

    def stats(self) -> dict[str, Any]:
        """The counts since the computation was wrapped."""
        native = self._native
        counts = native.stats() if native is not None else {}
        return _with_hit_rate({name: self._retired[name] + counts.get(name, 0) for name in _COUNTS})

    def end_epoch(self) -> dict[str, Any]:
        """The counts since the last epoch ended, which are logged as one line."""
        number, before = self._epoch
        now = self.stats()
        counts = _with_hit_rate({name: max(now[name] - before[name], 0) for name in _COUNTS})
        self._epoch = (number + 1, now)
        if self.options.get("progress"):
            print(f"\r{self._line(counts)}", file=sys.stderr)
        _log.info("%s: epoch %d: %s", self.module_id, number + 1, _line(counts))
        return {"epoch": number + 1, **counts}

    def _progress(self) -> None:
        now_s = time.monotonic()
        if now_s - self._shown_s < _PROGRESS_INTERVAL_S:
            return
        counts = self.stats()
        samples = sum(counts[name] - self._shown[name] for name in ("hits", "misses"))
        rate = samples / (now_s - self._shown_s) if self._shown_s else 0.0
        since = {name: counts[name] - self._epoch[1][name] for name in _COUNTS}
        print(f"\r{self._line(_with_hit_rate(since))}, {rate:.0f} samples/s", end="", file=sys.stderr, flush=True)
        self._shown_s, self._shown = now_s, counts

    def _line(self, counts: dict[str, Any]) -> str:
        return f"{self.module_id}: {_line(counts)}"

    # State

    @property
    def module_id(self) -> str:
        """The name of the folder of all identities of this computation."""
        return self._native.module_id if self._native is not None else self._default_module_id()

    def _default_module_id(self) -> str:
        return self.given_module_id or default_module_id(self.subject)

    @property
    def enabled(self) -> bool:
        """Whether the cache is on."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._enabled = bool(enabled)
        if self._native is not None:
            self._native.enabled = self._enabled

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Turns the cache off for the body."""
        before, self.enabled = self._enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def verify(self, verification: dict[str, Any] | None) -> None:
        """Sets the verification of hits."""
        self._native_options["verify"] = self.options["verify"] = verification
        self.open().set_verification(**(verification or {"share": 0.0}))

    def weights_changed(self) -> None:
        """Reports a change that is not detected."""
        self._stale = True
        if self._native is not None:
            self._native.weights_changed()

    def describe_again(self) -> None:
        """Makes the next call describe the computation again."""
        self._stale = True

    def flush(self) -> None:
        """Writes what was computed so far."""
        if self._native is not None:
            self._native.flush()
            self._warn()

    def close(self) -> None:
        """Flushes and closes. Later calls are errors."""
        with self._lock:
            native, self._closed = self._native, True
            if native is not None:
                self._native = None
                self._retire(native)
                native.close()


def _places(variables: list[_structure.Variable]) -> list[tuple[str, int, int]]:
    """Which tensors they are. The native handle keeps those that it was given."""
    return [(name, id(tensor), id(owner)) for name, tensor, owner, _ in variables]


def _without_autocast(ids_from: Callable[..., Any]) -> Callable[..., Any]:
    def ids(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop(AUTOCAST, None)
        return ids_from(*args, **kwargs)

    return ids


def _method_of(owner: weakref.ref[Handle], name: str) -> Callable[..., Any]:
    def method(*args: Any) -> Any:
        handle = owner()
        if handle is None:
            raise InvalidError("the cached module is gone")
        return getattr(handle, name)(*args)

    return method


def _leave_parent() -> None:
    for handle in list(_handles):
        handle.leave_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_parent)


def _with_hit_rate(counts: dict[str, Any]) -> dict[str, Any]:
    samples = counts["hits"] + counts["misses"]
    return {**counts, "hit_rate": counts["hits"] / samples if samples else 1.0}


def _line(counts: Mapping[str, Any]) -> str:
    mib = 1 << 20
    text = (
        f"{counts['hits']} hits, {counts['misses']} misses ({100 * counts['hit_rate']:.1f} % hits), "
        f"{counts['read_bytes'] / mib:.1f} MiB read, {counts['put_bytes'] / mib:.1f} MiB put, "
        f"{counts['compute_s']:.2f} s computed, {counts['saved_s']:.2f} s saved"
    )
    rare = [name for name in ("duplicates", "waited", "not_kept", "damaged", "verified", "bypassed") if counts[name]]
    return text + "".join(f", {counts[name]} {name.replace('_', ' ')}" for name in rare)


def _levels_to_user() -> int:
    """The number of frames from `warnings.warn` to the first one outside of this package and torch."""
    level, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("tensorcask", "torch"):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    return level
