"""What the documentation of torchcache promises, and what tensorcask adds to it."""

from __future__ import annotations

import copy
import importlib
import io
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import tensorcask as tc  # noqa: E402
from tensorcask.compat.torchcache import set_logger_config, torchcache  # noqa: E402
from torchcache_helpers import decorated, x  # noqa: E402, F401


# The decorator


def test_a_decorated_class_computes_once(x: Any) -> None:
    make, seen = decorated()
    module = make()
    assert torch.equal(module(x), x * 2) and torch.equal(module(x), x * 2)
    assert seen == [4]


def test_a_decorated_class_is_a_subclass_with_the_same_name() -> None:
    @torchcache()
    class Named(nn.Module):
        """Says what it does."""

    assert issubclass(Named, nn.Module) and Named.__name__ == "Named" and Named.__doc__ == "Says what it does."
    assert Named.__module__ == __name__ and isinstance(Named(), Named)


def test_a_decorated_function_computes_once(x: Any) -> None:
    seen = []

    @torchcache()
    def double(x: Any, add: int = 0) -> Any:
        """Doubles."""
        seen.append(x.shape[0])
        return x * 2 + add

    assert double.__name__ == "double" and double.__doc__ == "Doubles."
    for _ in range(2):
        assert torch.equal(double(x), x * 2) and torch.equal(double(x, add=1), x * 2 + 1)
        assert torch.equal(double(x, 1), x * 2 + 1)
    assert seen == [4, 4] and len(double.cache_instance.cache) == 8


def test_a_decorated_module_computes_once(x: Any) -> None:
    inner = nn.Linear(3, 2).requires_grad_(False)
    expected = inner(x)
    module = torchcache()(inner)
    assert module is inner and isinstance(module, nn.Linear)
    assert torch.equal(module(x), expected) and len(module.cache_instance.cache) == 4
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)


def test_parentheses_may_be_left_out(x: Any) -> None:
    @torchcache
    def double(x: Any) -> Any:
        return x * 2

    @torchcache
    class Module(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2

    assert torch.equal(double(x), x * 2) and hasattr(double, "cache_instance")
    assert torch.equal(Module()(x), x * 2) and hasattr(Module(), "cache_instance")


@pytest.mark.parametrize("target", [5, "text", int, object(), len])
def test_other_targets_are_a_type_error(target: Any) -> None:
    with pytest.raises(TypeError, match="can only decorate"):
        torchcache()(target)


def test_parameters_are_keywords_with_the_documented_defaults() -> None:
    cache = decorated()[0]().cache_instance
    assert (cache.memory_cache_device, cache.subsample_count, cache.persistent) == ("cpu", 10000, False)
    assert (cache.max_memory_cache_size, cache.cache_dtype, cache.use_mmap_on_load) == (1e9, None, False)
    assert (cache.zstd_compression, cache.zstd_compression_level, cache.zstd_compression_threads) == (False, 3, 1)
    with pytest.raises(TypeError):
        torchcache(True, False)
    with pytest.raises(TypeError):
        torchcache(unknown=1)


# Samples


def test_samples_are_cached_one_by_one(x: Any) -> None:
    make, seen = decorated()
    module = make()
    module(x[:2])
    assert torch.equal(module(x), x * 2) and torch.equal(module(x[[3, 0]]), x[[3, 0]] * 2)
    assert seen == [2, 2]


def test_missing_samples_are_merged_in_order(x: Any) -> None:
    make, seen = decorated()
    module = make()
    module(x[[1, 3]])
    order = [3, 2, 1, 0, 2]
    assert torch.equal(module(x[order]), x[order] * 2)
    assert seen == [2, 3]


def test_other_arguments_are_part_of_the_key(x: Any) -> None:
    make, seen = decorated()
    module = make()
    for add in (0.0, 1.0, 2.0):
        assert torch.equal(module(x, add), x * 2 + add) and torch.equal(module(x, add=add), x * 2 + add)
    assert torch.equal(module(x), x * 2)
    assert seen == [4, 4, 4]


def test_arguments_are_told_apart_by_name_and_place(x: Any) -> None:
    @torchcache()
    def f(x: Any, a: int = 0, b: int = 0) -> Any:
        return x * 0 + 10 * a + b

    assert f(x, 1, 2)[0, 0] == 12 and f(x, 2, 1)[0, 0] == 21
    assert f(x, a=3)[0, 0] == 30 and f(x, b=3)[0, 0] == 3


def test_several_tensors_are_sliced_together(x: Any) -> None:
    seen = []

    @torchcache()
    def add(x: Any, y: Any) -> Any:
        seen.append((x.shape[0], y.shape[0]))
        return x + y

    y = torch.randn(4, 3)
    add(x[:2], y[:2])
    assert torch.equal(add(x, y), x + y) and torch.equal(add(x, y=y), x + y)
    assert torch.equal(add(x, y.flip(0)), x + y.flip(0))
    assert seen == [(2, 2), (2, 2), (4, 4)]


def test_all_bytes_count_without_collisions() -> None:
    make, seen = decorated()
    module = make()
    zeros = torch.zeros(1, 40_000)
    module(zeros)
    for at in (1, 17, 39_999):
        changed = zeros.clone()
        changed[0, at] = 1e-30
        assert torch.equal(module(changed), changed * 2)
    # Elements that a weighted sum would confuse.
    swapped = torch.tensor([[1.0, 2.0, 4.0], [4.0, 0.5, 4.0], [2.0, 1.5, 4.0]])
    assert torch.equal(module(swapped), swapped * 2)
    assert torch.equal(module(swapped.flip(0)), swapped.flip(0) * 2)
    assert seen == [1, 1, 1, 1, 3]


def test_dtypes_and_shapes_are_part_of_the_key() -> None:
    make, seen = decorated()
    module = make()
    zeros = torch.zeros(2, 8)
    for same in (zeros, zeros.double(), zeros.reshape(2, 4, 2), zeros.int()):
        out = module(same)
        assert out.shape == same.shape and torch.equal(out, same * module.weight)
        assert out.dtype == (same * module.weight).dtype and module(same).dtype == out.dtype
    assert len(seen) == 4


def test_strided_inputs_are_the_same_as_their_copies(x: Any) -> None:
    make, seen = decorated()
    module = make()
    strided = torch.randn(3, 4).t()
    module(strided)
    assert torch.equal(module(strided.contiguous()), strided * 2) and seen == [4]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((1, 2), "No tensor inputs"),
        ((torch.ones(3),), "at least 2 dimensions"),
        ((torch.tensor(1.0),), "at least 2 dimensions"),
        ((torch.ones(3, 1), torch.ones(2, 1)), "same batch dimension"),
        ((torch.ones(3, 1), [1]), "immutable type"),
        ((torch.ones(3, 1), {"a": 1}), "immutable type"),
    ],
)
def test_inputs_that_cannot_be_cached_are_a_value_error(args: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decorated()[0]()(*args)


def test_an_empty_batch() -> None:
    assert decorated()[0]()(torch.zeros(0, 3)).shape == (0, 3)


def test_outputs_that_are_no_batch_are_refused(x: Any) -> None:
    for output in ((x, x), x[:1], x.sum()):
        with pytest.raises(tc.InvalidError):
            torchcache()(lambda x, output=output: output)(x)


def test_outputs_are_returned_on_the_device_of_the_inputs_without_gradients(x: Any) -> None:
    module = decorated()[0]()
    inputs = x.clone().requires_grad_()
    with pytest.warns(tc.TensorcaskWarning, match="gradients"):
        first = module(inputs)
    assert not first.requires_grad and not module(inputs).requires_grad and first.device == x.device


def test_returned_tensors_are_not_the_cached_ones(x: Any) -> None:
    module = decorated()[0]()
    for _ in range(3):
        out = module(x)
        assert torch.equal(out, x * 2)
        out.zero_()


# Memory


def test_memory_cache_is_limited(x: Any, caplog: pytest.LogCaptureFixture) -> None:
    make, seen = decorated(max_memory_cache_size=3 * 12 + 1)
    module = make()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(module(x), x * 2)
    cache = module.cache_instance
    assert len(cache.cache) == 3 and cache.memory_cache_size == 36 and cache.is_memory_cache_full
    assert "Memory cache is full" in caplog.text
    assert torch.equal(module(x), x * 2) and seen == [4, 1], "the newest outputs are left out"


def test_memory_cache_device_none_is_the_device_of_the_output(x: Any) -> None:
    module = decorated(memory_cache_device=None)[0]()
    module(x)
    assert all(row.device == x.device for row in module.cache_instance.cache.values())


@pytest.mark.parametrize("persistent", [False, True])
def test_cache_dtype_is_that_of_kept_outputs(x: Any, tmp_path: Path, persistent: bool) -> None:
    make, seen = decorated(cache_dtype=torch.half, persistent=persistent, persistent_cache_dir=tmp_path)
    module = make()
    module(x)
    assert all(row.dtype == torch.half for row in module.cache_instance.cache.values())
    assert module.cache_instance.memory_cache_size == 4 * 3 * 2
    for _ in range(2):
        out = module(x)
        assert out.dtype == torch.float32 and torch.equal(out, (x * 2).half().float())
        if persistent:
            module.cache_instance.cache = {}
    assert seen == [4]


# Attributes and instances


def test_attributes_override_parameters(x: Any, tmp_path: Path) -> None:
    make, _ = decorated(persistent=True)
    module = make(torchcache_persistent_cache_dir=tmp_path, torchcache_cache_dtype=torch.half,
                  torchcache_zstd_compression=True)  # fmt: skip
    cache = module.cache_instance
    assert cache.cache_parent_dir == tmp_path and cache.cache_dtype == torch.half and cache.zstd_compression
    module(x)
    assert all(row.dtype == torch.half for row in cache.cache.values())
    other = make(torchcache_persistent_cache_dir=tmp_path / "other").cache_instance
    assert other.cache_parent_dir == tmp_path / "other" and other.cache_dtype is None


def test_the_folder_is_no_part_of_the_module_hash(tmp_path: Path) -> None:
    @torchcache(persistent=True)
    class CachedModule(nn.Module):
        def __init__(self, cache_dir: Path) -> None:
            super().__init__()
            self.torchcache_persistent_cache_dir = cache_dir

    caches = [CachedModule(tmp_path / name).cache_instance for name in ("first", "second")]
    assert caches[0].module_hash == caches[1].module_hash and caches[0].cache_parent_dir == tmp_path / "first"


def test_class_attributes_override_parameters() -> None:
    @torchcache()
    class Module(nn.Module):
        torchcache_subsample_count = 77

    assert Module().cache_instance.subsample_count == 77


def test_disabled_decorators_and_instances_cache_nothing(x: Any, caplog: pytest.LogCaptureFixture) -> None:
    make, seen = decorated()
    with caplog.at_level(logging.INFO):
        on, off = make(torchcache_enabled=True), make(torchcache_enabled=False)
    assert "torchcache is disabled" in caplog.text
    assert hasattr(on, "cache_instance") and not hasattr(off, "cache_instance")
    for module in (on, on, off, off):
        module(x)
    assert seen == [4, 4, 4]
    make, seen = decorated(enabled=False)
    module = make()
    module(x)
    module(x)
    assert seen == [4, 4] and not hasattr(module, "cache_instance")
    assert torch.equal(torchcache(enabled=False)(lambda x: x * 2)(x), x * 2)


def test_hooks_of_the_module_see_whole_batches(x: Any) -> None:
    module = decorated()[0]()
    shapes = []
    module.register_forward_pre_hook(lambda _module, args: shapes.append(args[0].shape[0]))
    module.register_forward_hook(lambda _module, _args, out: shapes.append(out.shape[0]))
    module(x[:2])
    assert torch.equal(module(x), x * 2)
    assert shapes == [2, 2, 4, 4]


def test_a_compiled_model_may_contain_it(x: Any) -> None:
    make, seen = decorated()
    model = nn.Sequential(make(), nn.Linear(3, 1))
    compiled = torch.compile(model, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert torch.equal(compiled(x), model[1](x * 2))
    assert seen == [4] and len(model[0].cache_instance.cache) == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exports_and_transforms_run_the_module(x: Any) -> None:
    module = decorated()[0]()
    assert torch.equal(torch.export.export(module, (x,)).module()(x), x * 2)
    assert torch.equal(torch.jit.trace(module, (x,), check_trace=False)(x), x * 2)
    assert torch.equal(torch.vmap(module)(x.unsqueeze(1)).squeeze(1), x * 2)
    assert len(module.cache_instance.cache) == 0


def test_a_subclass_of_a_decorated_class_is_right(x: Any) -> None:
    make, seen = decorated()

    class Plus(make):  # type: ignore[misc, valid-type]
        def __init__(self, plus: float) -> None:
            super().__init__()
            self.plus = plus

        def forward(self, x: Any) -> Any:
            return super().forward(x) + self.plus

    for kind in (Plus, torchcache()(Plus)):
        for plus in (1.0, 2.0):
            module = kind(plus)
            for _ in range(2):
                assert torch.equal(module(x), x * 2 + plus)


def test_a_module_inside_a_model(x: Any) -> None:
    make, seen = decorated()
    model = nn.Sequential(make(), nn.Linear(3, 1))
    for _ in range(2):
        model(x).sum().backward()
    assert seen == [4] and model[1].weight.grad is not None
    assert list(model.state_dict()) == ["0.weight", "1.weight", "1.bias"]


def test_copies_share_the_cache(x: Any) -> None:
    make, seen = decorated()
    module = make()
    module(x)
    assert torch.equal(copy.deepcopy(module)(x), x * 2) and seen == [4]


def test_modules_of_decorated_classes_are_pickled(x: Any, tmp_path: Path) -> None:
    module = PickledModule(3.0, tmp_path)
    module(x)
    other = pickle.loads(pickle.dumps(module))
    assert torch.equal(other(x), x * 3) and type(other) is PickledModule
    assert len(other.cache_instance.cache) == 4 and other.samples == module.samples == 4, "both use the store"


@torchcache(persistent=True)
class PickledModule(nn.Module):
    def __init__(self, factor: float, folder: Path) -> None:
        super().__init__()
        self.factor, self.samples = factor, 0
        self.torchcache_persistent_cache_dir = folder

    def forward(self, x: Any) -> Any:
        self.samples += x.shape[0]
        return x * self.factor


def test_hash_tensor_hashes_each_row(x: Any) -> None:
    cache = decorated()[0]().cache_instance
    hashes = cache.hash_tensor(torch.cat([x, x]))
    assert hashes.shape == (8,) and hashes.dtype == torch.long
    assert torch.equal(hashes[:4], hashes[4:]) and len(set(hashes.tolist())) == 4


# Logging


@pytest.fixture
def root_logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    # `basicConfig` would close pytest's own handlers.
    root.handlers = []
    for name in [name for name in os.environ if name.startswith("TORCHCACHE_")]:
        monkeypatch.delenv(name)
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level
    logging.getLogger().manager._clear_cache()


def test_logging_has_the_documented_defaults(root_logger: logging.Logger) -> None:
    set_logger_config()
    (handler,) = root_logger.handlers
    assert root_logger.level == logging.WARNING and handler.stream is sys.stdout
    assert handler.formatter._fmt == "[torchcache] - %(asctime)s - %(name)s - %(levelname)s - %(message)s"
    assert handler.formatter.datefmt == "%Y-%m-%d %H:%M:%S"


def test_logging_takes_arguments(root_logger: logging.Logger, tmp_path: Path) -> None:
    stream, file = io.StringIO(), tmp_path / "log.txt"
    for _ in range(2):
        set_logger_config(level=logging.DEBUG, fmt="%(levelname)s %(message)s", stream=stream, filename=str(file))
        logging.getLogger("a").debug("hello")
    assert stream.getvalue() == "DEBUG hello\nDEBUG hello\n" == file.read_text(), "the file is appended to"


def test_logging_is_configured_by_the_environment(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHCACHE_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("TORCHCACHE_LOG_FMT", "%(message)s at %(asctime)s")
    monkeypatch.setenv("TORCHCACHE_LOG_DATEFMT", "%Y")
    monkeypatch.setenv("TORCHCACHE_LOG_FILE", str(tmp_path / "log.txt"))
    set_logger_config()
    logging.getLogger("a").debug("hello")
    assert (tmp_path / "log.txt").read_text().startswith("hello at 2")
    set_logger_config(level=logging.ERROR)
    assert root_logger.level == logging.ERROR


def test_a_wrong_level_in_the_environment_is_a_warning(root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setenv("TORCHCACHE_LOG_LEVEL", "LOUD")
    set_logger_config()
    assert root_logger.level == logging.WARNING


def test_importing_configures_logging_only_if_asked(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = logging.NullHandler()
    root_logger.handlers = [own]
    package = sys.modules["tensorcask.compat.torchcache"]
    importlib.reload(package)
    assert root_logger.handlers == [own], "the program configured logging itself"
    monkeypatch.setenv("TORCHCACHE_LOG_LEVEL", "ERROR")
    importlib.reload(package)
    assert root_logger.level == logging.ERROR and own not in root_logger.handlers
    root_logger.handlers = []
    monkeypatch.delenv("TORCHCACHE_LOG_LEVEL")
    importlib.reload(package)
    assert len(root_logger.handlers) == 1 and root_logger.level == logging.WARNING
