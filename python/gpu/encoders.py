"""Frozen backbones of the measurements."""

from __future__ import annotations

from typing import Any

import torch


class Pooled(torch.nn.Module):
    """A BERT with mean pooling: ``input_ids`` and ``attention_mask`` ``[n, tokens]`` to embeddings ``[n, dims]``."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


class VisionTransformer(torch.nn.Module):
    """The shape of ViT-B/16 with random weights: images ``[n, 3, 224, 224]`` to ``[n, 768]`` or ``[n, 197, 768]``."""

    def __init__(self, layers: int = 12, dims: int = 768, heads: int = 12, patch: int = 16, side: int = 224) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.outputs = "class"
        self.patches = torch.nn.Conv2d(3, dims, patch, stride=patch)
        self.class_token = torch.nn.Parameter(torch.randn(1, 1, dims) * 0.02)
        self.positions = torch.nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, dims) * 0.02)
        layer = torch.nn.TransformerEncoderLayer(
            dims, heads, 4 * dims, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = torch.nn.TransformerEncoder(layer, layers, torch.nn.LayerNorm(dims), enable_nested_tensor=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.positions
        states = self.layers(tokens)
        return states[:, 0] if self.outputs == "class" else states


class InHalf(torch.nn.Module):
    """Runs a module under autocast to bf16, and returns f16."""

    def __init__(self, module: torch.nn.Module, device_type: str) -> None:
        super().__init__()
        self.module = module
        self.device_type = device_type

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.module(images).half()
