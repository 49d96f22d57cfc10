"""The methods of everything that is cached: modules, functions, and instances of decorated classes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from . import _options
from ._handle import Handle


class CacheMethods:
    """The methods of everything that is cached."""

    def _tensorcask_handle(self) -> Handle:
        raise NotImplementedError

    def _tensorcask_training(self) -> bool:
        return False

    def call(
        self, args: Iterable[Any], kwargs: Mapping[str, Any] | None = None, *, ids: Any = None, variant: int = 0
    ) -> Any:
        """Calls with these arguments. Use it if the arguments include some that are called `ids` or `variant`.

        `ids` has one id a sample: an int64 tensor, or a list of int or str. Without ids, samples are found by content.
        `variant` is the number of the samples' variant, such as an augmentation. Returns what the wrapped computation
        returns. Raises `InvalidError` for arguments that are no batch, and unchanged what the computation raises.
        """
        handle = self._tensorcask_handle()
        return handle.call(tuple(args), dict(kwargs or {}), ids, variant, self._tensorcask_training())

    def lazy(
        self,
        ids: Any,
        load: Callable[[list[int]], Any],
        *,
        tensors: int | Sequence[str] = 1,
        kwargs: Mapping[str, Any] | None = None,
        variant: int = 0,
        device: Any = None,
    ) -> Any:
        """Looks samples up by ids, and loads the inputs of missing ones only.

        `load(positions)` returns the inputs of the samples at these positions of `ids`: a tensor, a tuple of tensors
        by position, or a dict of tensors by name. `tensors` says which: their number, or their names. `kwargs` are
        further plain arguments. Results are on `device` (default: the CPU).
        """
        return self._tensorcask_handle().lazy(ids, load, tensors, dict(kwargs or {}), variant, device)

    def contains(self, *args: Any, ids: Any = None, variant: int = 0, **kwargs: Any) -> list[bool]:
        """Whether the output of each sample is kept.

        Takes the arguments of a call, or ids alone: `contains("a")`, `contains(["a", "b"])`, `contains(ids=[1, 2])`.
        Ids alone stand for calls with one tensor; for others, pass the arguments too.
        """
        args, ids = _ids_of(args, ids)
        return self._tensorcask_handle().contains(args, kwargs, ids, variant)

    def why_miss(self, *args: Any, ids: Any = None, variant: int = 0, **kwargs: Any) -> Any:
        """Why the output of one sample is missing: how the identities that keep it differ.

        Takes the arguments of a call with one sample, or one id. The result has `kept`, `differences` (for each other
        identity that keeps the sample, a list of lines) and a text (`str`).
        """
        args, ids = _ids_of(args, ids)
        return self._tensorcask_handle().why_miss(args, kwargs, ids, variant)

    def stats(self) -> dict[str, Any]:
        """Counts since wrapping: hits, misses, duplicates, waited, not_kept, damaged, verified, bypassed, read_bytes,
        put_bytes, compute_s, saved_s (estimated seconds of computation that hits saved) and hit_rate (0 to 1)."""
        return self._tensorcask_handle().stats()

    def end_epoch(self) -> dict[str, Any]:
        """Ends an epoch: logs the counts since the last one as one line of the logger `tensorcask`, and returns them,
        with the number of the epoch as `epoch`."""
        return self._tensorcask_handle().end_epoch()

    def verify(self, share: float | None = 0.01, *, rtol: float = 1e-3, atol: float = 1e-5, fails: bool = True) -> None:
        """Computes this share of the hits again, from now on, and compares. 0 or None turns it off.

        Integers have to be equal, and floats within the tolerances. A difference is a `NotReproducibleError` if
        `fails`, else a warning.
        """
        given = None if share is None else {"share": share, "rtol": rtol, "atol": atol, "fails": fails}
        self._tensorcask_handle().verify(_options.verification(given))

    def weights_changed(self) -> None:
        """Reports a change that is not detected. The next call reads everything that the identity is made of.

        Calls detect replaced objects and changed containers, and nearly all writes to weights. They may miss a write of
        a few elements through `tensor.data` or into memory shared with another library, and a write of a few elements
        to a NumPy array with more than 4 KiB.
        """
        self._tensorcask_handle().weights_changed()

    def refresh(self) -> None:
        """Makes what other processes stored visible. A miss does this as well."""
        self._tensorcask_handle().open().refresh()

    def flush(self) -> None:
        """Returns when all outputs computed so far are written. Raises the first failure of a write."""
        self._tensorcask_handle().flush()

    def close(self) -> None:
        """Flushes, and closes the cache. Later calls raise `InvalidError`."""
        self._tensorcask_handle().close()

    def disabled(self) -> AbstractContextManager[None]:
        """A context in which calls run the computation directly, with gradients if they are recorded."""
        return self._tensorcask_handle().disabled()

    def held(self) -> tuple[int, int]:
        """The number of rows held on `memory_device`, and their bytes."""
        found: tuple[int, int] = self._tensorcask_handle().open().held()
        return found

    @property
    def enabled(self) -> bool:
        """Whether the cache is on. Set it to turn it on or off."""
        return self._tensorcask_handle().enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._tensorcask_handle().enabled = enabled

    @property
    def folder(self) -> str | None:
        """The folder of this computation's outputs, below the given folder; None if they are in memory."""
        found = self._tensorcask_handle().open().folder
        return None if found is None else os.fspath(found)

    @property
    def module_id(self) -> str:
        """The name of the folder that holds all identities of this computation."""
        return self._tensorcask_handle().module_id

    def __len__(self) -> int:
        """The number of samples that are kept for this identity."""
        return len(self._tensorcask_handle().open())

    def __bool__(self) -> bool:
        # An empty cache is not false.
        return True

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def keyword_names(forward: Callable[..., Any], options: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The keywords for ids and variant of calls; None for one that is a parameter of `forward` itself."""
    try:
        parameters = set(inspect.signature(forward).parameters)
    except (TypeError, ValueError):
        parameters = set()
    names = []
    for option, default in (("ids_as", "ids"), ("variant_as", "variant")):
        name = options.get(option)
        if name is not None and name in parameters:
            raise TypeError(f"{option}={name!r}: the computation has a parameter of this name; choose another name")
        names.append(name or (None if default in parameters else default))
    return names[0], names[1]


def _ids_of(args: tuple[Any, ...], ids: Any) -> tuple[tuple[Any, ...], Any]:
    """The arguments without a first one that is an id or a list of ids."""
    if ids is None and len(args) == 1:
        given = args[0]
        if isinstance(given, (str, int)) and not isinstance(given, bool):
            return (), [given]
        if isinstance(given, list) and given and all(isinstance(item, (str, int)) for item in given):
            return (), given
    return args, [ids] if isinstance(ids, (str, int)) else ids
