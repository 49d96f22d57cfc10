"""Counts, epochs, verification, limits, and turning a cache off and closing it."""

from __future__ import annotations

import logging
import os
import random
from typing import Any

import pytest
import torch
from cache_nets import Normed, batch, net
from torch import nn

import tensorcask as tc


def test_stats(folder: str) -> None:
    cached = tc.cache(net(), folder)
    assert cached.stats()["hit_rate"] == 1.0 and cached.stats()["misses"] == 0
    cached(batch())
    cached(batch(8))
    stats = cached.stats()
    assert (stats["hits"], stats["misses"], stats["hit_rate"]) == (4, 8, 4 / 12)
    assert stats["read_bytes"] == 4 * 2 * 4 and stats["put_bytes"] == 8 * 2 * 4
    assert stats["compute_s"] > 0 and stats["saved_s"] > 0


def test_stats_go_on_when_the_identity_changes(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    for scale in (2.0, 3.0, 2.0):
        cached.scale = scale
        cached(batch())
    assert cached.stats()["misses"] == 8 and cached.stats()["hits"] == 4


def test_end_epoch_logs_one_line(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    cached = tc.cache(net(), folder, module_id="net")
    with caplog.at_level(logging.INFO, "tensorcask"):
        cached(batch())
        first = cached.end_epoch()
        cached(batch())
        second = cached.end_epoch()
    assert (first["epoch"], first["misses"], first["hits"]) == (1, 4, 0)
    assert (second["epoch"], second["misses"], second["hits"], second["hit_rate"]) == (2, 0, 4, 1.0)
    lines = [record.getMessage() for record in caplog.records if record.name == "tensorcask"]
    assert len(lines) == 2 and lines[1].startswith("net: epoch 2: 4 hits, 0 misses (100.0 % hits)")


def test_progress(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    cached = tc.cache(net(), folder, module_id="net", progress=True)
    for _ in range(5):
        cached(batch())
    shown = capsys.readouterr().err
    # At most one line a second.
    assert shown.count("\r") == 1 and "net: 0 hits, 4 misses" in shown and "samples/s" in shown
    cached.end_epoch()
    assert capsys.readouterr().err.endswith("saved\n")
    quiet = tc.cache(net(), folder)
    quiet(batch())
    assert capsys.readouterr().err == ""


def test_verification_finds_a_module_that_is_not_deterministic(folder: str) -> None:
    def noisy(x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(len(x), 1)

    cached = tc.cache(noisy, folder, verify=1.0)
    cached(batch())
    with pytest.raises(tc.NotReproducibleError):
        cached(batch())
    cached.verify(0)
    cached(batch())
    cached.verify(share=1.0, fails=False)
    with pytest.warns(tc.TensorcaskWarning):
        cached(batch())
    cached.verify(share=1.0, atol=2.0)
    cached(batch())
    assert cached.stats()["verified"] >= 8


def test_verification_accepts_a_deterministic_module(folder: str) -> None:
    cached = tc.cache(net(), folder, verify={"share": 1.0, "rtol": 1e-4})
    cached(batch())
    cached(batch())
    cached(batch(), ids=[1, 2, 3, 4])
    cached.lazy([1, 2, 3, 4], lambda positions: batch()[positions])
    assert cached.stats()["verified"] == 8
    with pytest.raises(TypeError, match="rate"):
        tc.cache(net(), folder, verify={"rate": 1.0})
    with pytest.raises(tc.InvalidError, match="between 0 and 1"):
        tc.cache(net(), folder, verify=1.5)


def test_verification_survives_a_copy(folder: str) -> None:
    import pickle

    cached = tc.cache(net(), folder)
    cached.verify(1.0)
    cached(batch())
    again = pickle.loads(pickle.dumps(cached))
    again(batch())
    assert again.stats()["verified"] == 4


def test_enabled_and_disabled(folder: str) -> None:
    module = net()
    cached = tc.cache(module, folder)
    cached(batch())
    with cached.disabled():
        assert not cached.enabled
        cached(batch())
        x = batch().requires_grad_()
        assert cached(x).requires_grad
    assert cached.enabled and module.samples == 12 and cached.stats()["bypassed"] == 2
    cached.enabled = False
    cached(batch())
    assert module.samples == 16
    off = tc.cache(module, folder, enabled=False)
    off(batch())
    assert off.stats()["bypassed"] == 1 and not off.enabled


def test_disabled_stays_in_evaluation_mode(folder: str) -> None:
    module = Normed().requires_grad_(False)
    cached = tc.cache(module, folder)
    expected = cached(batch())
    with cached.disabled():
        assert torch.equal(cached(batch()), expected)


def test_close(folder: str) -> None:
    with tc.cache(net(), folder) as cached:
        cached(batch())
    with pytest.raises(tc.InvalidError, match="closed"):
        cached(batch())
    with pytest.raises(tc.InvalidError, match="closed"):
        len(cached)
    assert cached.stats()["misses"] == 4
    cached.close()
    cached.flush()
    again = tc.cache(cached.unwrap(), folder)
    again(batch())
    assert again.stats()["hits"] == 4


def test_folder_of_outputs(folder: str) -> None:
    cached = tc.cache(net(), folder, module_id="net")
    found = cached.folder
    assert found is not None and os.path.dirname(found) == os.path.join(os.path.realpath(folder), "net")
    cached(batch())
    cached.flush()
    assert any(files for _, _, files in os.walk(found))


def test_paths_are_accepted(tmp_path: Any) -> None:
    cached = tc.cache(net(), tmp_path / "cache")
    cached(batch())
    assert len(cached) == 4 and (tmp_path / "cache" / "Net").is_dir()


def test_disk_bytes_stop_storing(folder: str) -> None:
    cached = tc.cache(nn.Linear(3, 1000), folder, freeze=True, disk_bytes=200_000)
    for start in range(0, 400, 4):
        cached(batch(4, start))
    assert 0 < cached.stats()["not_kept"] < 400 and len(cached) < 60
    cached(batch(4, 0))
    assert cached.stats()["hits"] == 4
    cached.flush()
    sizes = [os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names]
    assert sum(sizes) < 300_000


def test_eviction(folder: str) -> None:
    cached = tc.cache(nn.Linear(3, 5000), folder, freeze=True, disk_bytes=3_000_000, eviction="oldest")
    for start in range(0, 400, 4):
        cached(batch(4, start))
    cached.flush()
    assert cached.stats()["not_kept"] == 0 and len(cached) < 400
    assert all(cached.contains(batch(4, 396)))


def test_memory_bytes() -> None:
    cached = tc.cache(nn.Linear(3, 1000), freeze=True, memory_bytes=40_000)
    for start in range(0, 40, 4):
        cached(batch(4, start))
    assert cached.stats()["not_kept"] > 0 and len(cached) <= 10


def test_sampled_content(folder: str) -> None:
    calls = []

    def embed(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x[:, :1].float()

    cached = tc.cache(embed, folder, content=(64, 4096))
    x = torch.zeros(1, 100_000, dtype=torch.uint8)
    cached(x)
    x[0, 500] = 1
    cached(x)
    assert calls == [1]
    x[0, 3] = 1
    cached(x)
    assert calls == [1, 1]


def test_damaged_rows_are_computed_again_with_a_warning(folder: str) -> None:
    with tc.cache(nn.Linear(3, 500), folder, module_id="net", freeze=True) as writer:
        expected = writer(batch(16), ids=list(range(16)))
    segments = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".arrow")]
    assert segments
    for path in segments:
        size = os.path.getsize(path)
        with open(path, "r+b") as file:
            file.seek(size // 2)
            file.write(bytes(random.Random(0).randrange(256) for _ in range(64)))
    cached = tc.cache(writer.unwrap(), folder, module_id="net")
    with pytest.warns(tc.TensorcaskWarning):
        torch.testing.assert_close(cached(batch(16), ids=list(range(16))), expected)
    assert cached.stats()["damaged"] >= 1
    strict = tc.cache(writer.unwrap(), folder, module_id="net", recompute_damaged=False)
    torch.testing.assert_close(strict(batch(16), ids=list(range(16))), expected)


def test_memory_device_holds_rows() -> None:
    cached = tc.cache(net(), memory_device="cpu", memory_bytes=1 << 20)
    cached(batch())
    cached(batch())
    rows, len_bytes = cached.held()
    # With what the table of rows takes.
    assert rows == 4 and 32 <= len_bytes < 1 << 20 and cached.stats()["hits"] == 4


def test_refresh(folder: str) -> None:
    one, two = tc.cache(net(), folder), tc.cache(net(), folder)
    one(batch())
    one.flush()
    two.refresh()
    assert len(two) == 4


def test_durability_and_lease(folder: str) -> None:
    cached = tc.cache(net(), folder, durability="all", lease_timeout_s=0, on_store_error="raise")
    cached(batch())
    cached.flush()
    assert len(cached) == 4
    with pytest.raises(tc.InvalidError, match="durability"):
        tc.cache(net(), folder, durability="firm")  # type: ignore[arg-type]
