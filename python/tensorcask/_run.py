"""Runs modules: in evaluation mode, in training mode, and while they are traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ._handle import Handle
from ._torch_state import evaluating

Run = Callable[[tuple[Any, ...], dict[str, Any], bool], Any]


def runner(module: nn.Module, call: Callable[..., Any]) -> Run:
    """A function that runs `call` in the evaluation mode of `module`, or in its own mode if it is training."""

    def run(args: tuple[Any, ...], kwargs: dict[str, Any], training: bool) -> Any:
        if training:
            return call(*args, **kwargs)
        with evaluating(module):
            return call(*args, **kwargs)

    return run


def run_traced(module: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs `call`, or, for the proxies of `torch.fx`, the module's forward.

    A tracer of `torch.fx` knows the children of the module, but not the module, which is not in the traced tree.
    """
    proxies = any(type(value).__name__ == "Proxy" for value in (*args, *kwargs.values()))
    return module.forward(*args, **kwargs) if proxies else call(*args, **kwargs)


def is_stateless(options: Mapping[str, Any]) -> bool:
    """Whether the module has to be frozen, and stays in evaluation mode."""
    return bool(options.get("enforce_stateless", True))


def freeze(module: nn.Module, options: Mapping[str, Any]) -> None:
    """Sets the module's modes as the options say."""
    if options.get("freeze"):
        # TorchScript modules have no `requires_grad_`.
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    if options.get("freeze") or is_stateless(options):
        module.eval()


def taken(handle: Handle, kwargs: dict[str, Any]) -> tuple[Any, int]:
    """The ids and the variant, which are removed from the arguments of a call."""
    ids = kwargs.pop(handle.ids_name, None) if handle.ids_name is not None else None
    variant = kwargs.pop(handle.variant_name, 0) if handle.variant_name is not None else 0
    return ids, variant
