"""Trees of tensors on a device."""

from __future__ import annotations

import dataclasses
from typing import Any


def to_device(rows: Any, device: Any) -> Any:
    """The same tree with its tensors on ``device``. Copies from page-locked memory do not block."""
    import torch

    if isinstance(rows, torch.Tensor):
        return rows.to(device, non_blocking=True)
    if isinstance(rows, dict):
        moved = {name: to_device(item, device) for name, item in rows.items()}
        return moved if type(rows) is dict else type(rows)(**moved)
    if isinstance(rows, tuple) and hasattr(rows, "_fields"):
        return type(rows)(*(to_device(item, device) for item in rows))
    if isinstance(rows, (list, tuple)):
        return type(rows)(to_device(item, device) for item in rows)
    if dataclasses.is_dataclass(rows) and not isinstance(rows, type):
        names = [field.name for field in dataclasses.fields(rows) if field.init]
        return type(rows)(**{name: to_device(getattr(rows, name), device) for name in names})
    return rows
