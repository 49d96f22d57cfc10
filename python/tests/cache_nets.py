"""Modules and functions that the tests of the caching layer wrap."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import nn

import tensorcask as tc


class Net(nn.Module):
    """A small network that counts the samples that it computes."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = scale
        self.samples = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.samples += len(x)
        return self.linear(x) * self.scale


class Normed(nn.Module):
    """A network with a batch normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@dataclasses.dataclass
class Pair:
    """Two tensors."""

    first: torch.Tensor
    second: torch.Tensor


class Named(NamedTuple):
    """Two tensors."""

    mean: torch.Tensor
    spread: torch.Tensor


def net(scale: float = 1.0, seed: int = 0) -> Net:
    """A frozen network with weights by seed."""
    torch.manual_seed(seed)
    return Net(scale).requires_grad_(False)


def batch(size: int = 4, start: int = 0) -> torch.Tensor:
    """Samples that differ."""
    return torch.arange(start * 3, (start + size) * 3, dtype=torch.float32).reshape(size, 3) / 10


class Returning(nn.Module):
    """Returns what a function makes of the input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make
        self.samples = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.samples += len(x)
        return self.make(x)


def batch_double(x: torch.Tensor) -> torch.Tensor:
    """Doubles a batch."""
    return x * 2


@tc.cache(module_id="decorated-double")
def decorated_double(x: torch.Tensor) -> torch.Tensor:
    """Doubles a batch, and keeps the result in memory."""
    return x * 2


@tc.cache(module_id="decorated-net")
class DecoratedNet(Net):
    """A network that is cached in memory."""
