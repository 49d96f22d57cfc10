"""Modules and helpers of the checks on a GPU. The checks use plain asserts, so they run without pytest too."""

from __future__ import annotations

import unittest
from typing import Any

import torch


class Backbone(torch.nn.Module):
    """A small frozen CNN: images ``[n, 3, 16, 16]`` to features ``[n, 32]``."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 32, 3, stride=2)
        for parameter in self.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            parameter.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(images).relu()).relu().mean((2, 3))


class Exact(torch.nn.Module):
    """Features that are the same on every device, bit for bit: sums of few small integers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1)[:, :32] * 64).round()


class Kinds(torch.nn.Module):
    """Outputs of many dtypes."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            "bf16": x.to(torch.bfloat16),
            "f16": x.half(),
            "f64": x.double(),
            "fp8": (x * 0.5).to(torch.float8_e4m3fn),
            "fp8_e5m2": (x * 0.5).to(torch.float8_e5m2),
            "complex": torch.complex(x, -x),
            "bool": x > 0,
            "int": (x * 100).long(),
            "u8": (x * 10).abs().to(torch.uint8),
        }


def images(count: int, device: Any, seed: int = 1) -> torch.Tensor:
    """Images ``[count, 3, 16, 16]``, the same on each device."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).to(device)


def needs_cuda(device: torch.device) -> None:
    """Skips a check on other devices."""
    if device.type != "cuda":
        raise unittest.SkipTest("needs a GPU")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def assert_bits(a: Any, b: Any) -> None:
    """Both have one structure, dtype, shape and the same bits."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), (a.keys(), b.keys())
        for name in a:
            assert_bits(a[name], b[name])
        return
    assert (a.dtype, a.shape) == (b.dtype, b.shape), (a.dtype, b.dtype, a.shape, b.shape)
    assert torch.equal(bits(a), bits(b)), "values differ"


def assert_counts(cached: Any, hits: int, misses: int) -> None:
    stats = cached.stats()
    assert (stats["hits"], stats["misses"]) == (hits, misses), stats


def on_device(tree: Any, device: torch.device) -> bool:
    """Whether all tensors of a dict are on ``device``."""
    tensors = tree.values() if isinstance(tree, dict) else [tree]
    return all(tensor.device == device for tensor in tensors)


def busy(device: torch.device, rounds: int = 40) -> torch.Tensor:
    """Starts kernels of some milliseconds on the current stream."""
    side = 1024 if device.type == "cuda" else 64
    x = torch.randn(side, side, device=device) / side**0.5
    for _ in range(rounds):
        x = (x @ x).clamp_(-1, 1)
    return x
