"""The inputs of a call, and the keys of their samples."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..._errors import InvalidError
from ..._native import digest

_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Inputs:
    """The arguments of a call: tensors whose first dimension is the batch, and plain values."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[torch.Tensor]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        """Raises `InvalidError`, a `ValueError`, for arguments that cannot be cached by sample."""
        values = [*args, *kwargs.values()]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        if not tensors:
            raise InvalidError("No tensor inputs found: pass at least one tensor, whose first dimension is the batch")
        for tensor in tensors:
            if tensor.ndim < 2:
                raise InvalidError(
                    f"All inputs must have at least 2 dimensions, the first being the batch: found a tensor of shape "
                    f"{list(tensor.shape)}"
                )
            if tensor.shape[0] != tensors[0].shape[0]:
                raise InvalidError(
                    "All inputs must have the same batch dimension: found tensors with "
                    f"{tensors[0].shape[0]} and {tensor.shape[0]} samples"
                )
        for value in values:
            if not isinstance(value, (torch.Tensor, *_PLAIN)):
                raise InvalidError(
                    "All non-Tensor extra args to the call must be of an immutable type, one of int, float, str and bool: found "
                    f"{type(value)}"
                )
        return cls(args, kwargs, tensors)

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])

    @property
    def device(self) -> torch.device:
        """The device of the inputs, where the outputs go."""
        return self.tensors[0].device

    def select(self, rows: list[int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for some of the samples."""
        if len(rows) == len(self):
            return self.args, self.kwargs
        index = torch.tensor(rows, dtype=torch.long)

        def of(value: Any) -> Any:
            return value.index_select(0, index.to(value.device)) if isinstance(value, torch.Tensor) else value

        return tuple(of(value) for value in self.args), {name: of(value) for name, value in self.kwargs.items()}

    def keys(self, context: str, parameters: inspect.Signature | None) -> list[str]:
        """A key a sample: 128 bits over `context`, plain arguments with their names, and all bytes of the sample."""
        named = list(self._named(parameters))
        plain = [(name, repr(value)) for name, value in named if not isinstance(value, torch.Tensor)]
        tensors = [(name, value) for name, value in named if isinstance(value, torch.Tensor)]
        shapes = [(name, str(value.dtype), tuple(value.shape[1:])) for name, value in tensors]
        head = f"{context}\n{plain}\n{shapes}\n"
        rows = [digest(sample_bytes(value)) for _, value in tensors]
        return digest([head + " ".join(parts) for parts in zip(*rows, strict=True)])

    def _named(self, parameters: inspect.Signature | None) -> Iterator[tuple[str, Any]]:
        """The arguments with the names of their parameters, however they were passed."""
        if parameters is None:
            yield from ((str(at), value) for at, value in enumerate(self.args))
            yield from sorted(self.kwargs.items())
            return
        bound = parameters.bind(*self.args, **self.kwargs)
        passed = set(bound.arguments)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if name not in passed and not isinstance(value, _PLAIN):
                continue
            kind = parameters.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                yield from ((f"*{name}[{at}]", item) for at, item in enumerate(value))
            elif kind is inspect.Parameter.VAR_KEYWORD:
                yield from ((f"**{name}[{key}]", value[key]) for key in sorted(value))
            else:
                yield name, value


def signature_of(compute: Callable[..., Any]) -> inspect.Signature | None:
    """The parameters of a function; None if they are not known."""
    try:
        return inspect.signature(compute)
    except (TypeError, ValueError):
        return None


def sample_bytes(tensor: torch.Tensor) -> list[bytes]:
    """The bytes of each row, in row-major order."""
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    count = dense.shape[0]
    width = dense.nbytes // count if count else 0
    if not width:
        return [b""] * count
    return [ctypes.string_at(dense.data_ptr() + at * width, width) for at in range(count)]
