"""The comparison of outputs that were computed again with the kept ones."""

from __future__ import annotations

from typing import Any


def difference(a: Any, b: Any, relative: float, absolute: float) -> str | None:
    """The first difference between two tensors in main memory; ``None`` if there is none. NaN equals NaN."""
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}"
    if not (a.dtype.is_floating_point or a.dtype.is_complex):
        if a.dtype in (torch.uint16, torch.uint32, torch.uint64):
            # They have few operations, and the same bits as the signed types.
            a, b = (t.view(getattr(torch, str(t.dtype).replace("torch.uint", "int"))) for t in (a, b))
        places = (a != b).reshape(-1).nonzero()
        if len(places) == 0:
            return None
        first = int(places[0])
        x, y = (t.reshape(-1)[first].item() for t in (a, b))
        return f"{len(places)} integers differ, the first is {x} against {y}"
    wide = torch.complex128 if a.dtype.is_complex else torch.float64
    a, b = a.to(wide), b.to(wide)
    if torch.allclose(a, b, rtol=relative, atol=absolute, equal_nan=True):
        return None
    return f"elements differ by up to {(a - b).abs().max().item():e}"
