"""A module whose output is a `ModelOutput` of transformers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class Pieces(ModelOutput):
    """Four tensors of a batch."""

    a: torch.Tensor | None = None
    b: torch.Tensor | None = None
    c: torch.Tensor | None = None
    d: torch.Tensor | None = None


class ProjectOutput(nn.Module):
    """Returns what a module returns as a dict in `Pieces`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> Pieces:
        """[n, …] to four tensors of [n, 192]."""
        return Pieces(**self.module(x))
