"""What the documentation of torchcachex promises, and what tensorcask adds to it."""

from __future__ import annotations

import copy
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tensorcask as tc  # noqa: E402
from tensorcask.compat import torchcachex  # noqa: E402
from tensorcask.compat.torchcachex import ArrowIPCCacheBackend, CacheModuleDecorator  # noqa: E402
from tensorcask.compat.torchcachex.utils import (  # noqa: E402
    _deserialize_sample,
    _serialize_sample,
    _tree_index,
    _tree_stack,
)

Pair = namedtuple("Pair", "first second")


class Doubler(torch.nn.Module):
    """Doubles its input, and counts the samples that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.samples = 0

    def forward(self, x: Any, **_more: Any) -> Any:
        x = x["input"] if isinstance(x, dict) else x
        self.samples += x.shape[0]
        return x * 2


class Returns(torch.nn.Module):
    """Returns what a function makes of the input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make, self.calls = make, 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.make(x)


@pytest.fixture
def backend(tmp_path: Path) -> ArrowIPCCacheBackend:
    return ArrowIPCCacheBackend(str(tmp_path), "module", async_write=False)


def ids(*numbers: int) -> list[str]:
    return [f"sample_{number}" for number in numbers]


def again(backend: ArrowIPCCacheBackend, **options: Any) -> ArrowIPCCacheBackend:
    """Another backend of the same folder, which has nothing in memory."""
    backend.flush()
    root = str(backend.cache_dir).removesuffix(backend.module_id)
    return ArrowIPCCacheBackend(root, backend.module_id, **options)


# The public names


def test_public_names_and_defaults(tmp_path: Path) -> None:
    assert set(torchcachex.__all__) == {"ArrowIPCCacheBackend", "CacheModuleDecorator", "__version__"}
    assert torchcachex.__version__ == "0.2.0"
    backend = ArrowIPCCacheBackend(cache_dir=str(tmp_path), module_id="m")
    assert (backend.lru.maxsize, backend.async_write, backend.flush_every) == (4096, True, 2048)
    assert (backend.writer_rank, backend.current_rank, backend.lru_enabled) == (0, 0, True)
    assert backend.executor is not None
    cached = CacheModuleDecorator(module=Doubler(), cache_backend=backend)
    assert cached.enabled and cached.enforce_stateless and cached.key_from_batch_fn is None
    assert cached.map_location_on_read == "cpu" and cached.cache is backend


def test_layout_is_cache_dir_module_id_segments_and_schema(backend: ArrowIPCCacheBackend, tmp_path: Path) -> None:
    assert backend.cache_dir == tmp_path / "module"
    assert backend.segments_dir == tmp_path / "module" / "segments" and backend.segments_dir.is_dir()
    assert backend.schema_path == tmp_path / "module" / "schema.json" and not backend.schema_path.exists()
    backend.put_batch({"a": torch.zeros(3)})
    backend.flush()
    assert backend.schema_path.exists() and any(backend.segments_dir.iterdir())
    assert not backend.index_path.exists(), "no pickle is written"


def test_segments_are_arrow_files(backend: ArrowIPCCacheBackend) -> None:
    ipc = pytest.importorskip("pyarrow.ipc")
    backend.put_batch({"a": torch.arange(3.0), "b": torch.ones(3)})
    backend.close()
    tables = [ipc.open_file(str(path)).read_all() for path in backend.segments_dir.glob("*.arrow")]
    assert sorted(key for table in tables for key in table["key"].to_pylist()) == ["a", "b"]


def test_a_module_id_may_name_a_folder_below(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(str(tmp_path), "vision/resnet", async_write=False)
    backend.put_batch({"a": torch.ones(2)})
    assert backend.cache_dir == tmp_path / "vision" / "resnet"
    assert again(backend).get_batch(["a"])[1] == []


# The decorator


def test_first_epoch_computes_and_second_epoch_hits(backend: ArrowIPCCacheBackend) -> None:
    module = Doubler()
    cached, x = CacheModuleDecorator(module, backend), torch.randn(4, 3)
    assert torch.equal(cached(x, cache_ids=ids(0, 1, 2, 3)), x * 2)
    assert torch.equal(cached(x, cache_ids=ids(0, 1, 2, 3)), x * 2)
    assert module.samples == 4


def test_only_missing_samples_are_computed_in_input_order(backend: ArrowIPCCacheBackend) -> None:
    module, x = Doubler(), torch.randn(6, 3)
    cached = CacheModuleDecorator(module, backend)
    cached(x[:3], cache_ids=ids(0, 1, 2))
    order = torch.tensor([5, 0, 3, 2, 4])
    assert torch.equal(cached(x[order], cache_ids=ids(5, 0, 3, 2, 4)), x[order] * 2)
    assert module.samples == 6


def test_progressive_enrichment_across_runs(tmp_path: Path) -> None:
    x, computed = torch.randn(100, 2), []
    for samples in (range(30), range(20, 60), range(100)):
        module = Doubler()
        with ArrowIPCCacheBackend(tmp_path, "features_v1") as backend:
            out = CacheModuleDecorator(module, backend)(x[list(samples)], cache_ids=ids(*samples))
        assert torch.equal(out, x[list(samples)] * 2)
        computed.append(module.samples)
    assert computed == [30, 30, 40]


def test_the_cache_is_reused_in_another_process(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, torch
        from tensorcask.compat.torchcachex import ArrowIPCCacheBackend, CacheModuleDecorator

        class Doubler(torch.nn.Module):
            samples = 0
            def forward(self, x):
                Doubler.samples += len(x)
                return x * 2

        cached = CacheModuleDecorator(Doubler(), ArrowIPCCacheBackend(sys.argv[1], "m"))
        out = cached(torch.arange(4.0).reshape(4, 1), cache_ids=["a", "b", "c", "d"])
        print(Doubler.samples, out.flatten().tolist())
    """)
    # Pending values are written at exit, without a flush.
    runs = [
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout for run in runs] == ["4 [0.0, 2.0, 4.0, 6.0]\n", "0 [0.0, 2.0, 4.0, 6.0]\n"]


def test_ids_come_from_the_keyword_then_the_batch_dict_then_the_function(backend: ArrowIPCCacheBackend) -> None:
    x = torch.ones(1, 1)
    cached = CacheModuleDecorator(Doubler(), backend, key_from_batch_fn=lambda batch, **_: ["from function"])
    cached({"input": x, "cache_ids": ["from dict"]}, cache_ids=["from keyword"])
    cached({"input": x, "cache_ids": ["from dict"]})
    cached({"input": x})
    assert set(backend.get_batch(["from keyword", "from dict", "from function"])[1]) == set()


def test_missing_ids_are_a_value_error(backend: ArrowIPCCacheBackend) -> None:
    with pytest.raises(ValueError, match="requires `cache_ids`"):
        CacheModuleDecorator(Doubler(), backend)(torch.ones(1, 1))
    with pytest.raises(ValueError, match="requires `cache_ids`"):
        CacheModuleDecorator(Doubler(), backend)(torch.ones(1, 1), cache_ids=None)


def test_ids_may_be_integers_and_tensors(backend: ArrowIPCCacheBackend) -> None:
    module, x = Doubler(), torch.randn(3, 2)
    cached = CacheModuleDecorator(module, backend)
    for same in ([7, 8, 9], torch.tensor([7, 8, 9]), ["7", "8", "9"], (7, 8, 9), list(torch.tensor([7, 8, 9]))):
        assert torch.equal(cached(x, cache_ids=same), x * 2)
    assert module.samples == 3


def test_ids_of_other_types_are_refused(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(Doubler(), backend)
    for wrong in ([1.5], [None], [("a", 1)]):
        with pytest.raises(tc.InvalidError, match="cache id"):
            cached(torch.ones(1, 1), cache_ids=wrong)
    with pytest.raises(tc.InvalidError, match="one id"):
        cached(torch.ones(3, 1), cache_ids="abc")


def test_the_number_of_ids_is_that_of_the_samples(backend: ArrowIPCCacheBackend) -> None:
    module = Doubler()
    with pytest.raises(ValueError, match="2 cache ids were passed for 3 samples"):
        CacheModuleDecorator(module, backend)(torch.ones(3, 1), cache_ids=ids(0, 1))
    assert module.samples == 0


def test_an_id_that_occurs_twice_in_a_batch(backend: ArrowIPCCacheBackend) -> None:
    cached, x = CacheModuleDecorator(Doubler(), backend), torch.ones(3, 1)
    for _ in range(2):
        assert torch.equal(cached(x, cache_ids=["a", "b", "a"]), x * 2)


def test_cache_ids_are_not_passed_to_the_module(backend: ArrowIPCCacheBackend) -> None:
    class Strict(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x

    x = torch.ones(2, 1)
    for enabled in (True, False):
        assert torch.equal(CacheModuleDecorator(Strict(), backend, enabled=enabled)(x, cache_ids=ids(0, 1)), x)


def test_disabled_passes_through_with_gradients(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(torch.nn.Linear(2, 2), backend, enabled=False)
    assert cached(torch.ones(1, 2)).requires_grad
    cached.enabled = True
    cached.eval()
    assert not cached(torch.ones(1, 2), cache_ids=["a"]).requires_grad


def test_trainable_parameters_are_an_error_in_training_mode(backend: ArrowIPCCacheBackend) -> None:
    cached, x = CacheModuleDecorator(torch.nn.Linear(2, 2), backend), torch.ones(1, 2)
    with pytest.raises(RuntimeError, match="trainable parameters"):
        cached(x, cache_ids=["a"])
    with pytest.raises(tc.TrainableError):
        cached(x, cache_ids=["a"])
    assert backend.get_batch(["a"])[1] == [0]
    cached.eval()
    cached(x, cache_ids=["a"])
    with pytest.raises(RuntimeError, match="enforce_stateless=False"):
        cached.train()(x, cache_ids=["a"])


def test_enforce_stateless_false_allows_trainable_parameters(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(torch.nn.Linear(2, 2), backend, enforce_stateless=False)
    assert not cached.train()(torch.ones(1, 2), cache_ids=["a"]).requires_grad


def test_frozen_parameters_are_no_error(backend: ArrowIPCCacheBackend) -> None:
    CacheModuleDecorator(torch.nn.Linear(2, 2).requires_grad_(False), backend)(torch.ones(1, 2), cache_ids=["a"])


def test_the_decoration_is_logged(backend: ArrowIPCCacheBackend, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        CacheModuleDecorator(Doubler(), backend, enabled=False)
    assert "Decorated module: Doubler (cache_key: module, enabled: False)" in caplog.text


def test_state_dict_is_that_of_the_inner_module(backend: ArrowIPCCacheBackend) -> None:
    inner = torch.nn.Linear(2, 2).requires_grad_(False)
    cached = CacheModuleDecorator(inner, backend)
    assert list(cached.state_dict()) == ["weight", "bias"]
    weights = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    result = cached.load_state_dict(weights)
    assert not result.missing_keys and torch.equal(inner.weight, torch.eye(2))
    with pytest.raises(RuntimeError, match="Missing key"):
        cached.load_state_dict({"weight": torch.eye(2)})
    assert cached.load_state_dict({"weight": torch.eye(2)}, strict=False).missing_keys == ["bias"]


def test_a_model_that_contains_it_loads_what_it_saved(backend: ArrowIPCCacheBackend) -> None:
    class Wraps(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = torch.nn.Linear(2, 2)

    def model(inner: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.ModuleDict({"features": CacheModuleDecorator(inner, backend), "head": torch.nn.Linear(2, 1)})

    for inner in (torch.nn.Linear(2, 2), Wraps()):
        saved = model(inner).state_dict()
        other = model(copy.deepcopy(inner))
        assert "features.module.module.weight" not in saved
        torch.nn.init.zeros_(next(other["features"].parameters()))
        other.load_state_dict(saved)
        assert all(torch.equal(a, b) for a, b in zip(saved.values(), other.state_dict().values(), strict=True))


def test_parent_models_share_a_cache(tmp_path: Path) -> None:
    extractor, x = Doubler(), torch.randn(3, 2)
    first = ArrowIPCCacheBackend(tmp_path, "features", async_write=False)
    CacheModuleDecorator(extractor, first)(x, cache_ids=ids(0, 1, 2))
    first.flush()
    second = ArrowIPCCacheBackend(tmp_path, "features", async_write=False)
    assert torch.equal(CacheModuleDecorator(extractor, second)(x, cache_ids=ids(0, 1, 2)), x * 2)
    assert extractor.samples == 3


def test_modules_with_other_ids_have_other_caches(tmp_path: Path) -> None:
    for name in ("a", "b"):
        module = Doubler()
        CacheModuleDecorator(module, ArrowIPCCacheBackend(tmp_path, name))(torch.ones(1, 1), cache_ids=["x"])
        assert module.samples == 1


# Outputs


@pytest.mark.parametrize(
    "make",
    [
        lambda x: {"features": x, "logits": x.half()},
        lambda x: (x, x.sum(1)),
        lambda x: [x, x * 3],
        lambda x: {"deep": {"list": [x, (x, x.long())], "tuple": (x,)}},
        lambda x: Pair(x, x + 1),
        lambda x: x.sum(1),
        lambda x: x.reshape(len(x), -1, 1, 1),
    ],
)
def test_nested_outputs_have_the_same_structure_and_dtypes(backend: ArrowIPCCacheBackend, make: Any) -> None:
    module, x = Returns(make), torch.randn(5, 2)
    cached = CacheModuleDecorator(module, backend)
    first = cached(x, cache_ids=ids(*range(5)))
    backend.lru.clear()
    second = cached(x, cache_ids=ids(*range(5)))
    third = CacheModuleDecorator(module, again(backend))(x, cache_ids=ids(*range(5)))
    assert module.calls == 1
    for found in (first, second, third):
        assert_same(found, make(x))


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert found == expected


def test_the_documented_complex_module(backend: ArrowIPCCacheBackend) -> None:
    def complex_output(x: Any) -> Any:
        return {"features": x @ torch.eye(4), "attention": torch.softmax(x @ x.t(), -1), "metadata": [x.mean(), x.std()]}

    cached, x = CacheModuleDecorator(Returns(complex_output), backend), torch.randn(5, 4)
    for _ in range(2):
        out = cached(x, cache_ids=ids(*range(5)))
        assert out["features"].shape == (5, 4) and out["attention"].shape == (5, 5)
        assert torch.equal(out["metadata"][0], x.mean().expand(5)) and len(out["metadata"]) == 2


def test_plain_values_belong_to_each_sample(backend: ArrowIPCCacheBackend) -> None:
    module = Returns(lambda x: {"visual": x, "metadata": {"width": x.shape[-1], "label": "foo", "none": None}})
    cached, x = CacheModuleDecorator(module, backend), torch.randn(2, 3)
    for _ in range(2):
        out = cached(x, cache_ids=ids(0, 1))
        assert out["metadata"] == {"width": [3, 3], "label": ["foo", "foo"], "none": [None, None]}
        backend.lru.clear()
    assert module.calls == 1


def test_outputs_of_several_shapes_are_a_list(backend: ArrowIPCCacheBackend) -> None:
    module = Returns(lambda x: [torch.full((12, int(n), int(n)), float(n)) for n in x])
    cached, x = CacheModuleDecorator(module, backend), torch.tensor([3, 5])
    for _ in range(2):
        out = cached(x, cache_ids=ids(3, 5))
        assert [tuple(item.shape) for item in out] == [(12, 3, 3), (12, 5, 5)]
        backend.lru.clear()
    assert module.calls == 1
    more = cached(torch.tensor([5, 4, 3]), cache_ids=ids(5, 4, 3))
    assert [float(item.max()) for item in more] == [5.0, 4.0, 3.0] and module.calls == 2


def test_a_list_of_batched_tensors_stays_one_when_the_batch_is_as_long(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(Returns(lambda x: [x, x * 3]), backend)
    cached(torch.randn(5, 2), cache_ids=ids(*range(5)))
    x = torch.randn(2, 2)
    for _ in range(2):
        assert_same(cached(x, cache_ids=["y", "z"]), [x, x * 3])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8",
                                   "bool", "complex64"])  # fmt: skip
def test_dtypes_are_preserved(backend: ArrowIPCCacheBackend, dtype: str) -> None:
    value = torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, dtype))
    backend.put_batch({"a": value})
    (found,), missing = again(backend).get_batch(["a"])
    assert missing == [] and found.dtype == value.dtype and torch.equal(found, value)


def test_special_values_and_shapes_are_preserved(backend: ArrowIPCCacheBackend) -> None:
    values = {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "nan": torch.tensor([float("nan"), float("inf")]),
              "text": "héllo", "strided": torch.randn(3, 4).t(), "deep": {"a": [{"b": (torch.ones(1), 2)}]}}  # fmt: skip
    backend.put_batch(values)
    found, missing = again(backend).get_batch(list(values))
    assert missing == []
    assert found[0].shape == () and found[1].shape == (0, 4) and torch.isnan(found[2][0])
    assert found[3] == "héllo" and torch.equal(found[4], values["strided"])
    assert_same(found[5], values["deep"])


def test_an_output_without_a_batch_dimension_is_refused(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(Returns(lambda x: x[:1]), backend)
    with pytest.raises(tc.InvalidError, match="for 3 samples"):
        cached(torch.ones(3, 2), cache_ids=ids(0, 1, 2))
    assert backend.get_batch(ids(0, 1, 2))[1] == [0, 1, 2]


def test_values_that_no_store_holds_stay_in_memory_with_a_warning(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"set": {1, 2}, "tensor": torch.ones(1)})
    with pytest.warns(tc.TensorcaskWarning, match="'set' stays in memory"):
        backend.flush()
    assert backend.get_batch(["set"]) == ([{1, 2}], [])
    assert again(backend).get_batch(["set", "tensor"])[1] == [0]


# Inputs


def test_other_arguments_that_may_be_batched_are_not_mixed_up(backend: ArrowIPCCacheBackend) -> None:
    class Adds(torch.nn.Module):
        def forward(self, x: Any, other: Any, scale: float = 1.0) -> Any:
            return (x + other) * scale

    cached = CacheModuleDecorator(Adds(), backend)
    x, other = torch.randn(4, 2), torch.randn(4, 2)
    cached(x[:2], other[:2], cache_ids=ids(0, 1), scale=2.0)
    assert torch.allclose(cached(x, other, cache_ids=ids(0, 1, 2, 3), scale=2.0), (x + other) * 2)
    assert torch.allclose(cached(x, other=other, cache_ids=ids(0, 1, 2, 3), scale=2.0), (x + other) * 2)


def test_missing_samples_are_selected_from_a_batch_dict(backend: ArrowIPCCacheBackend) -> None:
    module, x = Doubler(), torch.randn(4, 2)
    cached = CacheModuleDecorator(module, backend)
    cached({"input": x[:2], "cache_ids": ids(0, 1)})
    assert torch.equal(cached({"input": x, "cache_ids": ids(0, 1, 2, 3)}), x * 2)
    assert module.samples == 4


def test_inputs_without_rows_are_computed_whole(backend: ArrowIPCCacheBackend) -> None:
    module = Returns(lambda texts: torch.tensor([[float(len(text))] for text in texts]))
    cached = CacheModuleDecorator(module, backend)
    cached(["a", "bb"], cache_ids=ids(1, 2))
    assert cached(["bb", "ccc", "a"], cache_ids=ids(2, 3, 1)).tolist() == [[2.0], [3.0], [1.0]]


def test_exceptions_of_the_module_pass_through_and_keep_nothing(backend: ArrowIPCCacheBackend) -> None:
    def fail(_x: Any) -> Any:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        CacheModuleDecorator(Returns(fail), backend)(torch.ones(1, 1), cache_ids=["a"])
    assert backend.get_batch(["a"])[1] == [0]


# The backend


def test_get_batch_returns_values_in_order_and_missing_positions(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(2), "c": torch.zeros(2)})
    for reader in (backend, again(backend)):
        results, missing = reader.get_batch(["c", "b", "a", "b"])
        assert missing == [1, 3] and results[1] is None
        assert torch.equal(results[0], torch.zeros(2)) and torch.equal(results[2], torch.ones(2))
    assert backend.get_batch([]) == ([], [])


def test_put_batch_of_nothing(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({})
    assert backend.output_structure is None and len(backend.index) == 0


def test_the_newest_value_of_a_key_wins(backend: ArrowIPCCacheBackend) -> None:
    for number in range(3):
        backend.put_batch({"a": torch.full((2,), float(number))})
        backend.flush()
    assert again(backend).get_batch(["a"])[0][0].tolist() == [2.0, 2.0]


def test_the_order_of_puts_is_kept_with_many_threads(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", lru_size=0, max_workers=8, flush_every=1)
    for number in range(100):
        backend.put_batch({"a": torch.tensor([number])})
    backend.flush()
    assert again(backend).get_batch(["a"])[0][0].item() == 99


@pytest.mark.parametrize("async_write", [False, True])
def test_values_are_found_before_and_after_the_flush(tmp_path: Path, async_write: bool) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", lru_size=0, async_write=async_write, flush_every=10)
    for start in range(0, 100, 7):
        backend.put_batch({f"k{number}": torch.tensor(number) for number in range(start, start + 7)})
        assert backend.get_batch([f"k{start}", "k0"])[1] == []
    backend.flush()
    found, missing = again(backend).get_batch([f"k{number}" for number in range(105)])
    assert missing == [] and [int(value) for value in found] == list(range(105))


def test_flush_every_counts_samples(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", async_write=False, flush_every=3)
    reader = ArrowIPCCacheBackend(tmp_path, "m", current_rank=1)
    backend.put_batch({"a": torch.ones(1), "b": torch.ones(1)})
    assert reader.get_batch(["a", "b"])[1] == [0, 1]
    backend.put_batch({"c": torch.ones(1)})
    assert reader.get_batch(["a", "b", "c"])[1] == []


def test_async_write_false_has_no_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    backend = ArrowIPCCacheBackend(tmp_path, "m", async_write=False, flush_every=1)
    assert backend.executor is None
    backend.put_batch({"a": torch.ones(1)})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tensorcask-write")]
    assert threading.active_count() >= before


def test_the_lru_discards_what_was_used_longest_ago(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", lru_size=2, async_write=False)
    backend.put_batch({"a": torch.ones(1), "b": torch.ones(1)})
    backend.get_batch(["a"])
    backend.put_batch({"c": torch.ones(1)})
    assert set(backend.lru) == {"a", "c"} and backend.lru.currsize == 2 and backend.lru.maxsize == 2
    assert backend.get_batch(["b"])[1] == []


def test_values_that_are_read_enter_the_lru(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(1)})
    reader = again(backend)
    assert len(reader.lru) == 0
    reader.get_batch(["a"])
    assert list(reader.lru) == ["a"]


def test_lru_size_0_turns_the_lru_off(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m", lru_size=0, async_write=False)
    backend.put_batch({"a": torch.ones(1)})
    backend.flush()
    assert backend.get_batch(["a"])[1] == []
    assert not backend.lru_enabled and len(backend.lru) == 0


def test_returned_and_put_tensors_are_not_the_cached_ones(backend: ArrowIPCCacheBackend) -> None:
    value = torch.ones(2)
    backend.put_batch({"a": value})
    value.fill_(5)
    for _ in range(2):
        backend.get_batch(["a"])[0][0].fill_(7)
    backend.flush()
    backend.lru.clear()
    for _ in range(2):
        assert backend.get_batch(["a"])[0][0].tolist() == [1.0, 1.0]
        backend.get_batch(["a"])[0][0].fill_(7)


def test_values_are_detached_and_on_the_cpu(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(2, requires_grad=True) * 2})
    (found,), _ = backend.get_batch(["a"])
    assert not found.requires_grad and found.device.type == "cpu"


def test_map_location_moves_cached_tensors(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": {"x": torch.ones(2)}})
    for _ in range(2):
        assert backend.get_batch(["a"], map_location="meta")[0][0]["x"].device.type == "meta"
        backend.flush()
        backend.lru.clear()


def test_schema_is_inferred_from_the_first_output(tmp_path: Path) -> None:
    cases: dict[str, tuple[Any, list[str]]] = {
        "tensor": (torch.ones(2), ["key", "data", "shape"]),
        "dict": ({"f": torch.ones(2), "meta": "x"}, ["key", "f_data", "f_shape", "meta_blob"]),
        "tuple": ((torch.ones(2), torch.ones(1)), ["key", "item0_data", "item0_shape", "item1_data", "item1_shape"]),
        "list": ([torch.ones(2)], ["key", "item0_data", "item0_shape"]),
        "blob": (5, ["key", "blob"]),
    }
    for name, (value, columns) in cases.items():
        backend = ArrowIPCCacheBackend(tmp_path, name, async_write=False)
        assert backend.schema is None
        backend.put_batch({"a": value})
        assert backend.output_structure == name
        content = json.loads(backend.schema_path.read_text())
        assert [field["name"] for field in content["fields"]] == columns
        assert ArrowIPCCacheBackend(tmp_path, name).output_structure == name


def test_schema_is_an_arrow_schema(backend: ArrowIPCCacheBackend) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    backend.put_batch({"a": torch.ones(2, dtype=torch.float16)})
    expected = [("key", pyarrow.string()), ("data", pyarrow.list_(pyarrow.float16())), ("shape", pyarrow.list_(pyarrow.int64()))]
    assert backend.schema == pyarrow.schema(expected)
    assert backend.schema.metadata == {b"torch_dtype": b"torch.float16"}


def test_a_damaged_schema_is_inferred_again(backend: ArrowIPCCacheBackend, caplog: pytest.LogCaptureFixture) -> None:
    backend.put_batch({"a": torch.ones(2)})
    backend.flush()
    backend.schema_path.write_text("corrupted json {{{")
    other = ArrowIPCCacheBackend(str(backend.cache_dir.parent), "module", async_write=False)
    assert other.schema is None and "schema.json" in caplog.text
    other.put_batch({"b": torch.ones(2)})
    assert other.output_structure == "tensor" and other.get_batch(["a", "b"])[1] == []
    assert json.loads(other.schema_path.read_text())["output_structure"] == "tensor"


def test_outputs_of_one_module_may_differ_in_structure(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(2), "b": {"x": torch.ones(3)}, "c": (torch.ones(1), "text"), "d": 4})
    found, missing = again(backend).get_batch(["d", "c", "b", "a"])
    assert missing == [] and found[0] == 4 and found[1][1] == "text" and found[2]["x"].shape == (3,)


def test_the_index_says_what_is_stored(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(1), "b": torch.ones(1)})
    backend.flush()
    assert len(backend.index) == 2 and "a" in backend.index and "z" not in backend.index
    assert set(backend.index) == {"a", "b"}


# Ranks and processes


def test_only_the_writer_rank_writes(tmp_path: Path) -> None:
    other = ArrowIPCCacheBackend(tmp_path, "m", writer_rank=0, current_rank=1)
    other.put_batch({"a": torch.ones(1)})
    other.flush()
    assert other.get_batch(["a"])[1] == [], "its LRU cache has it"
    writer = ArrowIPCCacheBackend(tmp_path, "m", writer_rank=0, current_rank=0)
    assert writer.get_batch(["a"])[1] == [0]


def test_other_ranks_read_what_the_writer_flushed(tmp_path: Path) -> None:
    other = ArrowIPCCacheBackend(tmp_path, "m", writer_rank=3, current_rank=1)
    assert other.get_batch(["a"])[1] == [0], "there is no store yet"
    writer = ArrowIPCCacheBackend(tmp_path, "m", writer_rank=3, current_rank=3)
    for name in ("a", "b"):
        writer.put_batch({name: torch.ones(1)})
        writer.flush()
        assert other.get_batch([name])[1] == []


def test_the_rank_is_that_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    assert ArrowIPCCacheBackend(tmp_path, "m").current_rank == 2
    assert ArrowIPCCacheBackend(tmp_path, "m", current_rank=0).current_rank == 0


def test_two_writers_in_one_folder_lose_nothing(tmp_path: Path) -> None:
    backends = [ArrowIPCCacheBackend(tmp_path, "m", async_write=False) for _ in range(2)]
    for at, backend in enumerate(backends):
        backend.put_batch({f"k{at}": torch.full((2,), float(at))})
        backend.flush()
    for backend in backends:
        found, missing = backend.get_batch(["k0", "k1"])
        assert missing == [] and found[1].tolist() == [1.0, 1.0]


def test_a_forked_child_writes_with_a_handle_of_its_own(tmp_path: Path) -> None:
    module, x = Doubler(), torch.randn(4, 2)
    backend = ArrowIPCCacheBackend(tmp_path, "m")
    cached = CacheModuleDecorator(module, backend)
    cached(x[:2], cache_ids=ids(0, 1))
    backend.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert torch.equal(cached(x, cache_ids=ids(0, 1, 2, 3)), x * 2)
            assert module.samples == 4
            backend.flush()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(cached(x, cache_ids=ids(0, 1, 2, 3)), x * 2)
    assert module.samples == 2


def test_workers_of_a_data_loader_share_the_cache(tmp_path: Path) -> None:
    class Data(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.cached = CacheModuleDecorator(Doubler(), ArrowIPCCacheBackend(tmp_path, "m"))

        def __len__(self) -> int:
            return 8

        def __getitem__(self, at: int) -> Any:
            return self.cached(torch.full((1, 2), float(at)), cache_ids=[at])[0]

    for _ in range(2):
        rows = torch.cat(list(torch.utils.data.DataLoader(Data(), batch_size=4, num_workers=2)))
        assert torch.equal(rows[:, 0], torch.arange(8.0) * 2)
    reader = ArrowIPCCacheBackend(tmp_path, "m")
    assert reader.get_batch([str(at) for at in range(8)])[1] == [], "workers write what is pending when they end"


def test_a_backend_is_pickled_as_its_folder(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(Doubler(), backend)
    cached(torch.ones(1, 1), cache_ids=["a"])
    other = pickle.loads(pickle.dumps(cached))
    other(torch.ones(1, 1), cache_ids=["a"])
    assert other.module.samples == cached.module.samples == 1
    assert other.cache.cache_dir == backend.cache_dir and len(other.cache.lru) == 1


def test_a_deep_copy_shares_the_backend(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(torch.nn.Linear(2, 2).requires_grad_(False), backend)
    cached(torch.ones(1, 2), cache_ids=["a"])
    other = copy.deepcopy(cached)
    assert other.cache is backend and other.module is not cached.module
    assert torch.equal(other(torch.ones(1, 2), cache_ids=["a"]), cached(torch.ones(1, 2), cache_ids=["a"]))


def test_a_killed_process_leaves_all_flushed_values(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import os, sys, torch
        from tensorcask.compat.torchcachex import ArrowIPCCacheBackend
        backend = ArrowIPCCacheBackend(sys.argv[1], "m")
        backend.put_batch({f"k{at}": torch.full((4,), float(at)) for at in range(50)})
        backend.flush()
        os.kill(os.getpid(), 9)
    """)
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    found, missing = ArrowIPCCacheBackend(tmp_path, "m").get_batch([f"k{at}" for at in range(50)])
    assert missing == [] and found[49].tolist() == [49.0] * 4


def test_files_of_an_interrupted_write_are_ignored(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(1)})
    backend.flush()
    (backend.segments_dir / "segment_000001.arrow.tmp").write_text("incomplete")
    backend.index_path.write_bytes(b"not a pickle")
    assert again(backend).get_batch(["a"])[1] == []


def test_a_damaged_row_is_an_error_and_not_a_miss(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.full((1000,), 1.5)})
    backend.close()
    (segment,) = backend.segments_dir.glob("*.arrow")
    content = bytearray(segment.read_bytes())
    at = content.find(torch.full((1000,), 1.5).numpy().tobytes())
    content[at + 100] ^= 1
    segment.write_bytes(content)
    reader = ArrowIPCCacheBackend(str(backend.cache_dir.parent), "module", current_rank=1)
    with pytest.raises(tc.CorruptError):
        reader.get_batch(["a"])


def test_segments_of_torchcachex_are_mentioned(tmp_path: Path) -> None:
    segments = tmp_path / "m" / "segments"
    segments.mkdir(parents=True)
    (segments / "segment_000000.arrow").write_bytes(b"ARROW1")
    with pytest.warns(tc.TensorcaskWarning, match="tensorcask import-torchcachex"):
        ArrowIPCCacheBackend(tmp_path, "m")
    assert (segments / "segment_000000.arrow").exists()


def test_a_closed_backend_cannot_be_used(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(1)})
    backend.close()
    with pytest.raises(tc.InvalidError, match="closed"):
        backend.get_batch(["b"])
    assert ArrowIPCCacheBackend(str(backend.cache_dir.parent), "module").get_batch(["a"])[1] == []


def test_dropping_a_backend_flushes_it(tmp_path: Path) -> None:
    backend = ArrowIPCCacheBackend(tmp_path, "m")
    backend.put_batch({"a": torch.ones(1)})
    del backend
    assert ArrowIPCCacheBackend(tmp_path, "m").get_batch(["a"])[1] == []


# Weights


def test_other_weights_under_the_same_module_id_are_a_warning(tmp_path: Path) -> None:
    def cached() -> CacheModuleDecorator:
        return CacheModuleDecorator(torch.nn.Linear(2, 2).requires_grad_(False), ArrowIPCCacheBackend(tmp_path, "m"))

    x, first, second = torch.ones(1, 2), cached(), cached()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = first(x, cache_ids=["a"])
        first(x, cache_ids=["a"])
        first.cache.flush()
    with pytest.warns(tc.TensorcaskWarning, match="other weights"):
        assert torch.equal(second(x, cache_ids=["a"]), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second(x, cache_ids=["a"])
        second.module.load_state_dict(first.module.state_dict())
        CacheModuleDecorator(second.module, ArrowIPCCacheBackend(tmp_path, "m"))(x, cache_ids=["a"])


def test_weights_that_are_loaded_later_are_a_warning(backend: ArrowIPCCacheBackend) -> None:
    cached = CacheModuleDecorator(torch.nn.Linear(2, 2).requires_grad_(False), backend)
    cached(torch.ones(1, 2), cache_ids=["a"])
    cached.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)})
    with pytest.warns(tc.TensorcaskWarning, match="other weights"):
        cached(torch.ones(1, 2), cache_ids=["a"])


# Trees


def test_tree_index_takes_a_sample_out_of_nested_batches() -> None:
    batch = {"img": torch.arange(8).reshape(4, 2), "pair": (torch.arange(4), "text"), "more": [{"x": torch.arange(4)}]}
    sample = _tree_index(batch, 1)
    assert sample["img"].tolist() == [2, 3] and sample["pair"][0].item() == 1 and sample["pair"][1] == "text"
    assert sample["more"][0]["x"].item() == 1
    assert _tree_index([torch.ones(12, 30), torch.ones(12, 50)], 1).shape == (12, 50)


def test_tree_stack_is_the_inverse_of_tree_index() -> None:
    samples = [{"img": torch.full((3,), float(at)), "label": at, "t": (torch.ones(at + 1),)} for at in range(4)]
    batch = _tree_stack(samples)
    assert batch["img"].shape == (4, 3) and batch["label"] == [0, 1, 2, 3]
    assert [len(item) for item in batch["t"][0]] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="empty"):
        _tree_stack([])


def test_samples_are_serialized_without_code() -> None:
    sample = {"a": torch.randn(3, requires_grad=True), "b": [1, "x", (None, 2.5)]}
    found = _deserialize_sample(_serialize_sample(sample))
    assert torch.equal(found["a"], sample["a"]) and not found["a"].requires_grad and found["b"] == sample["b"]
    blob = pickle.dumps(os.getcwd)
    with pytest.raises(Exception, match="(?i)weights|unsupported|unpickl|magic|invalid"):
        _deserialize_sample(blob)
