"""Digests of bytes, texts and tensors. Tensors have the digests that FORMAT.md describes for weights."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._errors import InvalidError
from ._native import digest

if TYPE_CHECKING:
    import torch

# The names of element types that the adapters share.
_ELEMENTS = {
    "bool": "Bool", "uint8": "Uint8", "int8": "Int8", "int16": "Int16", "int32": "Int", "int64": "Int64",
    "float16": "Half", "bfloat16": "BFloat16", "float32": "Float", "float64": "Double", "complex64": "ComplexFloat",
    "float8_e5m2": "Float8e5m2", "float8_e4m3fn": "Float8e4m3fn", "float8_e5m2fnuz": "Float8e5m2fnuz",
    "float8_e4m3fnuz": "Float8e4m3fnuz", "complex128": "ComplexDouble", "complex32": "ComplexHalf",
}  # fmt: skip


def digest_of(data: str | bytes) -> str:
    """128 bits of xxh3 as hexadecimal digits."""
    return digest([data])[0]


def digest_of_array(value: Any) -> str:
    """The digest of a tensor, or of an array that numpy can read: element type, shape and hash of the bytes."""
    if type(value).__module__.partition(".")[0] == "numpy":
        import numpy

        array = numpy.ascontiguousarray(value)
        if array.dtype.hasobject:
            raise InvalidError(f"an array of {array.dtype} holds Python objects, whose bytes say nothing: convert it")
        return _joined(array.dtype.name, array.shape, array.tobytes())
    return _joined(str(value.dtype).removeprefix("torch."), tuple(value.shape), _bytes_of(value))


def _joined(dtype: str, shape: Sequence[int], data: bytes) -> str:
    dims = ", ".join(str(dim) for dim in shape)
    return f"{_ELEMENTS.get(dtype, dtype)} [{dims}] {digest_of(data)}"


def _bytes_of(tensor: torch.Tensor) -> bytes:
    dense = tensor.detach().resolve_conj().resolve_neg()
    dense = (dense.to_dense() if dense.is_sparse else dense).cpu().contiguous()
    return ctypes.string_at(dense.data_ptr(), dense.nbytes) if dense.nbytes else b""
