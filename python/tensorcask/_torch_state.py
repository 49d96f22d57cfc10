"""State of torch that decides how a call is handled: autocast, and inputs that hold no values."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

AUTOCAST = "torch.autocast"
"""The named argument that tells calls under autocast apart. No parameter can have this name."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def autocast_text() -> str | None:
    """The device types and dtypes of the active autocast; None if it is off."""
    if not torch._C._is_any_autocast_enabled():
        return None
    found = [kind for kind in _device_types() if torch.is_autocast_enabled(kind)]
    return ", ".join(f"{kind} {torch.get_autocast_dtype(kind)}".replace("torch.", "") for kind in found) or None


def _device_types() -> list[str]:
    accelerator = torch.accelerator.current_accelerator() if hasattr(torch, "accelerator") else None
    kinds = {"cpu", "cuda"} if accelerator is None else {"cpu", "cuda", accelerator.type}
    return sorted(kinds)


@contextmanager
def autocast_as(text: str | None) -> Iterator[None]:
    """Runs the body under the autocast that `autocast_text` described.

    A computation may run on another thread than its caller, and autocast belongs to a thread.
    """
    if text == autocast_text():
        yield
        return
    wanted = dict(part.split(" ") for part in text.split(", ")) if text else {}
    with contextlib.ExitStack() as stack:
        for kind in _device_types():
            dtype = getattr(torch, wanted[kind]) if kind in wanted else None
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=dtype is not None))
        yield


def is_symbolic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call is traced or transformed, so that its tensors hold no values of samples.

    True within functorch transforms such as `vmap`, within `torch.jit.trace`, and for fake tensors, meta tensors and
    proxies of `torch.fx`.
    """
    if torch._C._functorch.peek_interpreter_stack() is not None or torch._C._is_tracing():
        return True
    return any(map(_holds_symbolic, args)) or any(map(_holds_symbolic, kwargs.values()))


def _holds_symbolic(value: Any) -> bool:
    kind = type(value)
    if isinstance(value, torch.Tensor):
        # Only subclasses can be fake.
        return value.is_meta or (kind is not torch.Tensor and kind.__name__ in ("FakeTensor", "FunctionalTensor"))
    if isinstance(value, dict):
        return any(map(_holds_symbolic, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_symbolic, value))
    return kind.__name__ == "Proxy" and kind.__module__.startswith("torch.fx")


def is_exporting() -> bool:
    """Whether `torch.export` traces the program."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


def not_compiled(function: _Function) -> _Function:
    """Excludes a function from `torch.compile`, which breaks its graph around the call.

    `torch.compiler.disable` does this, but it imports the compiler, which takes seconds. So a process that does not
    compile does without.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # The first condition is constant for the compiler, which then does not look at the modules: they may change.
        if not torch.compiler.is_compiling() and "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    # The marks by which the compiler does not inline the call.
    vars(call).update(_torchdynamo_disable=True, _torchdynamo_disable_msg="a lookup in a cache")
    return cast("_Function", call)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Runs the body with the module and its submodules in evaluation mode, and restores their modes."""
    training = [submodule for submodule in module.modules() if submodule.training]
    for submodule in training:
        submodule.training = False
    try:
        yield
    finally:
        for submodule in training:
            submodule.training = True
