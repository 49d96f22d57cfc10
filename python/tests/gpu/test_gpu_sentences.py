"""A published sentence encoder on a GPU. ``python/gpu/pack.py`` makes the folder that its weights travel in."""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any

import torch

import tensorcask as tc

TEXTS = ["A frozen model does not change.", "Its outputs are computed once.", "Hits are read from the disk."] * 20


def model_on(device: Any) -> Any:
    folder = os.environ.get("TENSORCASK_GPU_MODEL", "")
    if not folder or not Path(folder).is_dir():
        raise unittest.SkipTest("needs TENSORCASK_GPU_MODEL, the folder of a sentence encoder")
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise unittest.SkipTest("needs sentence-transformers") from error
    model = SentenceTransformer(folder, device=str(device))
    return model.to(torch.float32)


def test_sentences(device: Any, tmp_path: Path) -> None:
    model = model_on(device)
    cached = tc.integrations.sentence_transformers.cache(model, tmp_path)
    texts = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    expected = model.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    first = cached.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    second = cached.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    assert expected.device == first.device == second.device
    torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(first, second)
    array = cached.encode(texts, show_progress_bar=False)
    assert torch.equal(torch.from_numpy(array), first.cpu())
    # The same embeddings are found by the model on the CPU.
    model.to("cpu")
    assert torch.equal(cached.encode(texts[:5], convert_to_tensor=True), first[:5].cpu())
    assert (cached.stats()["hits"], cached.stats()["misses"]) == (125, 60), cached.stats()
    cached.close()
