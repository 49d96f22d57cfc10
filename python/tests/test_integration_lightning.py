"""A callback that logs hits and flushes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning.pytorch", reason="needs Lightning")

import tensorcask as tc  # noqa: E402

CacheCallback = tc.integrations.lightning.CacheCallback
pytestmark = pytest.mark.filterwarnings("ignore")


class Backbone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x: Any) -> Any:
        return x * self.scale


class Model(lightning.LightningModule):
    def __init__(self, *caches: Any, fails_at: int | None = None) -> None:
        super().__init__()
        self.caches = torch.nn.ModuleList(caches)
        self.head = torch.nn.Linear(4, 1)
        self.fails_at = fails_at

    def training_step(self, batch: Any, index: int) -> Any:
        x, ids = batch
        if index == self.fails_at:
            raise ValueError("a step failed")
        for cached in self.caches:
            x = cached(x, ids=ids)
        return self.head(x).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader() -> Any:
    samples = torch.utils.data.TensorDataset(torch.rand(24, 4), torch.arange(24))
    return torch.utils.data.DataLoader(samples, batch_size=8, shuffle=True)


def trainer(tmp_path: Path, callback: Any, epochs: int = 3) -> Any:
    return lightning.Trainer(
        max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip


def is_on_disk(tmp_path: Path, module_id: str = "backbone") -> int:
    """The number of samples that another handle finds."""
    with tc.cache(Backbone(), tmp_path, module_id=module_id, read_only=True) as other:
        return len(other)


def test_counters_of_each_epoch_are_logged(tmp_path: Path) -> None:
    cached = tc.cache(Backbone(), tmp_path, module_id="backbone")
    seen: list[dict[str, float]] = []

    class Recorder(CacheCallback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_epoch_end(trainer, pl_module)
            seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})
            assert is_on_disk(tmp_path) == 24, "outputs are flushed"

    run = trainer(tmp_path, Recorder())
    run.fit(Model(cached), loader())
    assert float(run.callback_metrics["cache/hit_rate"]) == 1.0
    assert float(run.callback_metrics["cache/hits"]) == 24 and float(run.callback_metrics["cache/misses"]) == 0
    assert cached.stats()["misses"] == 24 and cached.stats()["hits"] == 48
    assert len(seen) == 3
    cached.close()


def test_several_modules_have_names_of_their_own(tmp_path: Path) -> None:
    caches = [tc.cache(Backbone(), tmp_path, module_id=name) for name in ("first", "second")]
    further = tc.cache(Backbone(), tmp_path, module_id="third")
    run = trainer(tmp_path, CacheCallback([further], prefix="tensorcask"), epochs=1)
    run.fit(Model(*caches), loader())
    assert float(run.callback_metrics["tensorcask/first/misses"]) == 24
    assert float(run.callback_metrics["tensorcask/second/misses"]) == 24
    assert float(run.callback_metrics["tensorcask/third/misses"]) == 0
    for cached in [*caches, further]:
        cached.close()


def test_outputs_survive_an_exception(tmp_path: Path) -> None:
    cached = tc.cache(Backbone(), tmp_path, module_id="backbone")
    with pytest.raises(ValueError, match="a step failed"):
        trainer(tmp_path, CacheCallback(log=False)).fit(Model(cached, fails_at=2), loader())
    assert is_on_disk(tmp_path) == 16
    cached.close()


def test_ranks_share_the_folder(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
torch.set_num_threads(1)
import test_integration_lightning as here, tensorcask as tc
samples = torch.utils.data.TensorDataset(torch.arange(96.0).reshape(24, 4), torch.arange(24))
loader = torch.utils.data.DataLoader(samples, batch_size=4)
cached = tc.cache(here.Backbone(), {str(tmp_path)!r}, module_id="backbone")
trainer = here.lightning.Trainer(
    max_epochs=2, callbacks=[here.CacheCallback(sync_dist=True)], accelerator="cpu", devices=2, strategy="ddp",
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(here.Model(cached), loader)
stats = cached.stats()
assert (stats["hits"], stats["misses"]) == (12, 12), stats
cached.close()
"""
    path = tmp_path / "train.py"
    path.write_text(script)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    assert is_on_disk(tmp_path) == 24
