"""Says what to install if PyTorch is missing."""

from __future__ import annotations

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError("tensorcask.compat needs PyTorch: install it with `pip install tensorcask[torch]`") from error
