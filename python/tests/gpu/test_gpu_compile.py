"""Compiled models that contain a cached module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gpu_support import Backbone, assert_counts, images

import tensorcask as tc


class Classifier(torch.nn.Module):
    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x, ids=ids)).softmax(-1)


def test_a_compiled_model_looks_up(device: Any, tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    cached = tc.cache(Backbone().to(device), tmp_path, module_id="compiled")
    model = Classifier(cached).to(device)
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(model, backend=backend)
    x, ids = images(24, device), torch.arange(24)
    for _ in range(3):
        torch.testing.assert_close(compiled(x, ids), model(x, ids), rtol=1e-3, atol=1e-4)
    compiled(x, ids).sum().backward()
    assert model.head[0].weight.grad is not None
    assert cached.stats()["misses"] == 24, cached.stats()
    cached.close()


def test_a_compiled_backbone_is_cached(device: Any, tmp_path: Path) -> None:
    torch._dynamo.reset()
    backbone = Backbone().to(device)
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    x = images(8, device)
    with torch.no_grad():
        expected = backbone(x)
    backbone.compile(backend=backend)
    cached = tc.cache(backbone, tmp_path, module_id="inner")
    for _ in range(2):
        torch.testing.assert_close(cached(x, ids=list(range(8))), expected, rtol=1e-3, atol=1e-4)
    assert_counts(cached, 8, 8)
    cached.close()
