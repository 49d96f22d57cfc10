"""The options of `tensorcask.cache`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ._errors import InvalidError

if TYPE_CHECKING:
    import torch

Folder = "str | os.PathLike[str]"


class Options(TypedDict, total=False):
    """The keyword options of `tensorcask.cache`. All are optional.

    Identity: an output is found if all of these are equal
      version: the version of the code. Necessary in a folder for code that cannot be seen.
      arguments: values that the outputs depend on, by name.
      fingerprint: bytes, tensors or arrays that the outputs depend on, by name. Only a hash of them is kept.
      instance: a name. Instances with different names do not share outputs.
      source: whether the source code counts. None (the default): that of functions, decorated classes, and modules of
        your own classes, but not that of installed packages. True: that of installed modules too. False: none.
      check_structure: whether the type and configuration of a module count (default True).
      weights: "check" (default): the bytes of all weights and buffers count. "ignore": they do not; outputs of other
        weights are served, with a warning.
      cache_dtype: the dtype that wider floats are kept as: float16, bfloat16 or float32.
      restore_dtype: whether results are converted back to the module's dtype (default False).

    The module
      freeze: calls `requires_grad_(False)` and `eval()` (default False).
      enforce_stateless: whether trainable modules are refused (default True). If False, calls in training mode bypass
        the cache.
      allow_grad_inputs: whether inputs that require gradients are accepted, as if detached (default False).
      enabled: whether the cache is on (default True).

    Samples
      ids_from: a function of the call's arguments that returns the ids, for calls without ids.
      ids_as, variant_as: the names of the keywords for ids and variant (default "ids", "variant"), for modules whose
        own arguments have these names.
      content: None (default): all bytes of a sample count. (edge_bytes, stride_bytes): of longer samples the bytes at
        both ends count, and 64 bytes of each stride.

    Outputs
      ragged: "list" (default): rows whose shapes differ are returned as a list. "pad" or a number: they are padded
        with zeros or with that number.
      lists: "batched" (default): a list holds outputs of the whole batch. "each": a list holds one output per sample.
      map_location: the device of results (default: that of the inputs).
      pinned: whether hits are read into page-locked memory (default: if results go to a CUDA device).

    Storage
      place: "folder", "memory" or "temporary" (default: "folder" if one is given, else "memory").
      read_only: whether missing outputs are computed and not kept (default False).
      memory_bytes: the limit of outputs held in memory (default 0, or 1 GiB for place="memory").
      memory_device: the device that holds them.
      disk_bytes: the limit of the module's files (default: none).
      disk_scope: "module" (default): of all identities of the module id; "identity": of each.
      eviction: what is removed at `disk_bytes`: "stop" (default) nothing, "oldest" or "coldest" (least read)
        outputs.
      codec: "none" (default), "zstd" or "shuffle-zstd", with a level as in "zstd:9".
      durability: "buffered" (default), "data" or "all": what has reached the disk when a flush returns.
      recompute_damaged: whether damaged rows are computed again, with a warning (default True).
      on_store_error: "warn" (default): a full or broken disk is a warning. "raise": it is an error.

    Processes
      rank, world_size: default: those of `torch.distributed`, or of RANK and WORLD_SIZE.
      writer_rank: the only rank that writes (default: each rank writes).
      lease_timeout_s: how long a call waits for other processes that compute the same samples (default 30).

    Checks and progress
      verify: the share of hits that are computed again and compared (0.01), or a dict of share, rtol, atol and fails.
      progress: whether a line of counts is shown on stderr, at most once a second (default False).
    """

    version: str
    arguments: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    instance: str
    source: bool | None
    check_structure: bool
    weights: Literal["check", "ignore"]
    cache_dtype: torch.dtype | str | None
    restore_dtype: bool
    freeze: bool
    enforce_stateless: bool
    allow_grad_inputs: bool
    enabled: bool
    ids_from: Callable[..., Any] | None
    ids_as: str
    variant_as: str
    content: tuple[int, int] | None
    ragged: Literal["list", "pad"] | float
    lists: Literal["batched", "each"]
    map_location: Any
    pinned: bool
    place: Literal["folder", "memory", "temporary"]
    read_only: bool
    memory_bytes: int
    memory_device: Any
    disk_bytes: int | None
    disk_scope: Literal["module", "identity"]
    eviction: Literal["stop", "oldest", "coldest"]
    codec: str | None
    durability: Literal["buffered", "data", "all"]
    recompute_damaged: bool
    on_store_error: Literal["warn", "raise"]
    rank: int
    world_size: int
    writer_rank: int | None
    lease_timeout_s: float
    verify: float | Mapping[str, Any] | None
    progress: bool


IDENTITY = ("version", "arguments", "fingerprint", "source", "check_structure")
LAYER = ("freeze", "enabled", "ids_as", "variant_as", "progress")
_VERIFICATION = {"share": 0.01, "rtol": 1e-3, "atol": 1e-5, "fails": True}


def check(options: Mapping[str, Any]) -> None:
    """Raises `TypeError` for names that are no options."""
    for name in options:
        if name not in Options.__annotations__:
            close = difflib.get_close_matches(name, [*Options.__annotations__, "folder", "module_id"], n=3)
            hint = f": did you mean {' or '.join(map(repr, close))}?" if close else ": see tensorcask.Options"
            raise TypeError(f"tensorcask.cache has no option {name!r}{hint}")
    for name in ("arguments", "fingerprint"):
        if not isinstance(options.get(name, {}), Mapping):
            raise TypeError(f"the option {name!r} is a {type(options[name]).__name__}: expected a dict")


def verification(value: float | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The verification that a share or a dict describes; None for a share of 0."""
    if value is None or value is False:
        return None
    given = dict(value) if isinstance(value, Mapping) else {"share": float(value)}
    unknown = [name for name in given if name not in _VERIFICATION]
    if unknown:
        raise TypeError(f"verify has no entry {unknown[0]!r}: it has {', '.join(_VERIFICATION)}")
    return (_VERIFICATION | given) if given.get("share", 1) != 0 else None


def native_options(folder: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the native handle."""
    result = {name: value for name, value in options.items() if name not in IDENTITY + LAYER}
    result["check_structure"] = options.get("check_structure", True)
    result["place"] = _place(folder, options.get("place"))
    if "verify" in result:
        result["verify"] = verification(result["verify"])
    if result.get("ragged") == "pad":
        result["ragged"] = 0.0
    if "rank" not in result and "world_size" not in result:
        result.update(_distributed())
    return result


def _place(folder: Any, place: str | None) -> str:
    if place is None:
        return "memory" if folder is None else "folder"
    if place == "folder" and folder is None:
        raise InvalidError("place='folder' was given without a folder: name the folder of the outputs")
    if place in ("memory", "temporary") and folder is not None:
        raise InvalidError(
            f"the folder {os.fspath(folder)!r} was given with place={place!r}, which keeps nothing in it: leave out one"
        )
    return place


def _distributed() -> dict[str, int]:
    """The rank in the default process group; nothing if there is none."""
    import sys

    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return {}
    return {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}
