"""PyTorch for this package, or an error that says how to install it."""

from __future__ import annotations

try:
    import torch
except ImportError as error:
    raise ImportError("tensorcask.data needs PyTorch: install it with `pip install tensorcask[torch]`") from error

__all__ = ["torch"]
