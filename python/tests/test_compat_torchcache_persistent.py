"""What torchcache keeps on disk, and when it is computed again."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import tensorcask as tc  # noqa: E402
from tensorcask.compat.torchcache import torchcache  # noqa: E402
from torchcache_helpers import decorated, x  # noqa: E402, F401


# Persistent caches


def test_a_persistent_cache_is_used_by_another_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent("""
        import sys, torch
        from torch import nn
        from tensorcask.compat.torchcache import torchcache

        @torchcache(persistent=True, persistent_cache_dir=sys.argv[1])
        class Module(nn.Module):
            def __init__(self, factor):
                super().__init__()
                self.factor = factor
            def forward(self, x):
                print("computed", len(x), end=" ")
                return x * self.factor

        module = Module(float(sys.argv[2]))
        print(module(torch.arange(3.0).reshape(3, 1)).flatten().tolist(), module.cache_instance.module_hash)
    """))

    def run(factor: str) -> str:
        command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "cache"), factor]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    first, second, other = run("2"), run("2"), run("3")
    assert first.startswith("computed 3 [0.0, 2.0, 4.0]") and second.startswith("[0.0, 2.0, 4.0]")
    assert other.startswith("computed 3 [0.0, 3.0, 6.0]"), "constructor arguments count"
    assert first.split()[-1] == second.split()[-1] != other.split()[-1]


def test_outputs_come_from_disk_after_memory_was_cleared(x: Any, tmp_path: Path) -> None:
    make, seen = decorated(persistent=True, persistent_cache_dir=tmp_path)
    module = make()
    module(x)
    module.cache_instance.cache = {}
    assert torch.equal(module(x), x * 2) and seen == [4]
    assert len(module.cache_instance.cache) == 4, "what is read from disk enters the memory cache"


def test_the_folder_is_named_by_the_module_hash(x: Any, tmp_path: Path) -> None:
    make, _ = decorated(persistent=True, persistent_cache_dir=tmp_path)
    cache = make().cache_instance
    assert cache.cache_parent_dir == tmp_path and cache.cache_dir == tmp_path / cache.module_hash
    assert [path.name for path in tmp_path.iterdir()] == [cache.module_hash] and len(cache.module_hash) == 64


def test_a_temporary_folder_is_removed_at_exit() -> None:
    program = textwrap.dedent("""
        import torch
        from tensorcask.compat.torchcache import torchcache
        double = torchcache(persistent=True)(lambda x: x * 2)
        double(torch.ones(2, 2))
        print(double.cache_instance.cache_dir, double.cache_instance.cache_dir.is_dir())
    """)
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert out[1] == "True" and not Path(out[0]).parent.exists()


def test_cache_cleanup_removes_the_folder(x: Any, tmp_path: Path) -> None:
    make, _ = decorated(persistent=True, persistent_cache_dir=tmp_path / "cache")
    module = make()
    module(x)
    module.cache_instance.cache_cleanup()
    assert not (tmp_path / "cache").exists()


def test_cache_cleanup_leaves_what_is_not_of_the_cache(x: Any, tmp_path: Path) -> None:
    make, _ = decorated(persistent=True, persistent_cache_dir=tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    module = make()
    module(x)
    module.cache_instance.cache_cleanup()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    make, _ = decorated(persistent=True, persistent_cache_dir=tmp_path / "two")
    module = make()
    module(x)
    (module.cache_instance.cache_dir / "notes.txt").write_text("mine too")
    module.cache_instance.cache_cleanup()
    assert (module.cache_instance.cache_dir / "notes.txt").read_text() == "mine too"


def test_persistent_cache_is_limited(x: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, seen = decorated(persistent=True, persistent_cache_dir=tmp_path, max_persistent_cache_size=2 * (12 + 32))
    module = make()
    with caplog.at_level(logging.WARNING):
        module(x)
    cache = module.cache_instance
    assert cache.is_persistent_cache_full and "Persistent cache is full" in caplog.text
    assert cache.persistent_cache_size == 2 * (12 + 32)
    cache.cache = {}
    assert torch.equal(module(x), x * 2) and seen == [4, 2]


def test_compression_needs_a_persistent_cache() -> None:
    with pytest.raises(ValueError, match="Cannot use zstd compression without persistent cache"):
        decorated(zstd_compression=True)[0]()


@pytest.mark.parametrize("level", [-100, 1, 22])
def test_compressed_outputs_are_smaller_and_the_same(tmp_path: Path, level: int) -> None:
    options = {"zstd_compression": True, "zstd_compression_level": level, "zstd_compression_threads": 2}
    make, seen = decorated(persistent=True, persistent_cache_dir=tmp_path, use_mmap_on_load=True, **options)
    module, x = make(), torch.ones(8, 5000)
    module(x)
    module.cache_instance.cache = {}
    assert torch.equal(module(x), x * 2) and seen == [8]
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.arrow*") if path.is_file())
    assert written < x.nbytes / 2


def test_persistent_module_hash_stands_for_the_module(x: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"persistent": True, "persistent_cache_dir": tmp_path, "persistent_module_hash": "my_module_hash"}
    with caplog.at_level(logging.WARNING):
        make, _ = decorated(**options)
        first = make()(x)
    assert "my_module_hash" in caplog.text and (tmp_path / "my_module_hash").is_dir()
    make, seen = decorated(**options)
    other = make(factor=7.0)
    assert torch.equal(other(x), first) and seen == [] and other.cache_instance.module_hash == "my_module_hash"


def test_a_forked_child_reads_and_writes(x: Any, tmp_path: Path) -> None:
    make, seen = decorated(persistent=True, persistent_cache_dir=tmp_path)
    module = make()
    module(x[:2])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            module.cache_instance.cache = {}
            assert torch.equal(module(x), x * 2) and seen == [2, 2]
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(module(x), x * 2) and seen == [2]


# When the cache is invalidated


def test_instances_with_the_same_arguments_share_a_cache(x: Any) -> None:
    make, seen = decorated()
    first, second, other = make(3.0), make(3.0), make(4.0)
    assert first.cache_instance is second.cache_instance is not other.cache_instance
    assert torch.equal(first(x), second(x)) and seen == [4]
    assert torch.equal(other(x), x * 4) and seen == [4, 4]


def test_other_code_is_another_cache(x: Any, tmp_path: Path) -> None:
    hashes = set()
    for body in ("x * 2", "x * 3", "x * 2  # a comment"):
        file = tmp_path / "code.py"
        code = f"from torch import nn\nclass M(nn.Module):\n    def forward(self, x):\n        return {body}\n"
        file.write_text(code)
        space = importlib.util.spec_from_file_location("code_under_test", file)
        loaded = importlib.util.module_from_spec(space)
        sys.modules["code_under_test"] = loaded
        space.loader.exec_module(loaded)
        module = torchcache()(loaded.M)()
        assert torch.equal(module(x), x * (3 if "3" in body else 2))
        hashes.add(module.cache_instance.module_hash)
    del sys.modules["code_under_test"]
    assert len(hashes) == 2, "comments are no code"


def test_other_parameters_are_another_cache() -> None:
    hashes = {torchcache(subsample_count=n)(nn.Flatten)().cache_instance.module_hash for n in (10, 10, 20)}
    assert len(hashes) == 2


def test_weights_that_change_are_noticed(x: Any) -> None:
    make, seen = decorated()
    module = make()
    module(x)
    module.weight.fill_(5.0)
    assert torch.equal(module(x), x * 5)
    module.load_state_dict({"weight": torch.full((1,), 6.0)})
    assert torch.equal(module(x), x * 6)
    module.weight = nn.Parameter(torch.full((1,), 7.0), requires_grad=False)
    assert torch.equal(module(x), x * 7)
    module.weight.fill_(2.0)
    assert torch.equal(module(x), x * 2) and seen == [4, 4, 4, 4], "the first outputs are valid again"


def test_training_mode_is_part_of_the_key(x: Any) -> None:
    @torchcache()
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(1.0)

        def forward(self, x: Any) -> Any:
            return self.dropout(x)

    module = Drops()
    assert torch.equal(module.train()(x), torch.zeros_like(x)) and torch.equal(module.eval()(x), x)


def test_a_module_that_changes_itself_is_not_cached(x: Any) -> None:
    @torchcache()
    class Normalizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3).requires_grad_(False)

        def forward(self, x: Any) -> Any:
            return self.norm(x)

    module = Normalizes()
    with pytest.warns(tc.TensorcaskWarning, match="eval"):
        module(x)
    assert len(module.cache_instance.cache) == 0
    module.eval()
    assert torch.equal(module(x), module(x)) and len(module.cache_instance.cache) == 4


def test_trainable_parameters_are_refused_at_construction() -> None:
    @torchcache()
    class Trainable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

    with pytest.raises(AssertionError, match="parameters that require gradients"):
        Trainable()
    with pytest.raises(tc.TrainableError, match="linear.weight"):
        Trainable()


def test_parameters_that_become_trainable_get_gradients(x: Any) -> None:
    module = decorated()[0]()
    module(x)
    module.requires_grad_(True)
    with pytest.warns(tc.TensorcaskWarning, match="gradients"):
        module(x).sum().backward()
    assert module.weight.grad is not None
