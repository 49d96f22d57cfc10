"""Modules for the tests of `tensorcask.compat.torchcache`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tensorcask.compat.torchcache import torchcache


def decorated(**options: Any) -> Any:
    """A decorated class of its own, and the list of the sizes of the batches that were computed."""
    seen: list[int] = []

    @torchcache(**options)
    class Module(nn.Module):
        def __init__(self, factor: float = 2.0, **attributes: Any) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((1,), factor), requires_grad=False)
            for name, value in attributes.items():
                setattr(self, name, value)

        def forward(self, x: Any, add: float = 0.0) -> Any:
            seen.append(x.shape[0])
            return x * self.weight + add

    return Module, seen


@pytest.fixture
def x() -> Any:
    return torch.randn(4, 3)
