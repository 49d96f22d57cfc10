"""What the documentation of torchcachex promises of its decorator, and what tensorcask adds."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import warnings
import pickle
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tensorcask as tc  # noqa: E402
from tensorcask.compat import torchcachex  # noqa: E402
from tensorcask.compat.torchcachex import ArrowIPCCacheBackend, CacheModuleDecorator  # noqa: E402
from torchcachex_helpers import Doubler, Returns, again, assert_same, backend, ids  # noqa: E402, F401

Pair = namedtuple("Pair", "first second")


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


def test_each_flush_writes_one_arrow_file(backend: ArrowIPCCacheBackend) -> None:
    ipc = pytest.importorskip("pyarrow.ipc")
    for number in range(3):
        backend.put_batch({f"{number}a": torch.arange(3.0), f"{number}b": torch.ones(3)})
        backend.flush()
        backend.flush()
    names = sorted(path.name for path in backend.segments_dir.glob("segment_*.arrow"))
    assert names == ["segment_000000.arrow", "segment_000001.arrow", "segment_000002.arrow"]
    tables = [ipc.open_file(str(backend.segments_dir / name)).read_all() for name in names]
    assert [table["key"].to_pylist() for table in tables] == [["0a", "0b"], ["1a", "1b"], ["2a", "2b"]]
    assert tables[0]["value"].to_pylist() == [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]


def test_links_follow_compaction(backend: ArrowIPCCacheBackend) -> None:
    for number in range(4):
        backend.put_batch({"a": torch.full((3,), float(number)), str(number): torch.ones(3)})
        backend.flush()
    with tc.open(backend.cache_dir.parent, "module") as store:
        store.compact(live_share=1.0)
    backend.put_batch({"b": torch.ones(3)})
    backend.flush()
    links = sorted(backend.segments_dir.glob("segment_*.arrow"))
    targets = {link.resolve().name for link in links}
    assert all(link.exists() for link in links) and len(targets) == len(links)
    assert targets == {path.name for path in backend.segments_dir.glob("0*.arrow")}
    backend.lru.clear()
    found, missing = backend.get_batch(["a", "0", "1", "2", "3", "b"])
    assert missing == [] and found[0].tolist() == [3.0, 3.0, 3.0]


def test_a_copied_segment_changes_nothing(backend: ArrowIPCCacheBackend) -> None:
    backend.put_batch({"a": torch.ones(3)})
    backend.flush()
    (segment,) = backend.segments_dir.glob("segment_*.arrow")
    shutil.copy(segment, backend.segments_dir / "segment_999999.arrow")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = again(backend)
    assert other.get_batch(["a"])[1] == [] and len(other.index) == 1


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


def test_a_compiled_model_may_contain_it(backend: ArrowIPCCacheBackend) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = CacheModuleDecorator(Doubler(), backend), torch.nn.Linear(3, 1)

        def forward(self, x: Any, cache_ids: Any) -> Any:
            return self.head(self.features(x, cache_ids=cache_ids))

    model, x = Model(), torch.randn(4, 3)
    compiled = torch.compile(model, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in ([0, 1], [0, 1], [1, 2, 3]):
            assert torch.equal(compiled(x[batch], ids(*batch)), model.head(x[batch] * 2))
    assert model.features.module.samples == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exports_and_transforms_run_the_module(backend: ArrowIPCCacheBackend) -> None:
    module = torch.nn.Linear(3, 2).requires_grad_(False)
    cached, x = CacheModuleDecorator(module, backend), torch.randn(4, 3)
    assert torch.equal(torch.export.export(cached, (x,)).module()(x), module(x))
    assert torch.equal(torch.jit.trace(cached, (x,), check_trace=False)(x), module(x))
    assert CacheModuleDecorator(Doubler(), backend)(x.to("meta")).is_meta
    assert torch.allclose(torch.vmap(cached)(x.unsqueeze(1)).squeeze(1), module(x))
    assert len(backend.index) == 0


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


def test_the_documented_complex_module(backend: ArrowIPCCacheBackend) -> None:
    def complex_output(x: Any) -> Any:
        attention = torch.softmax(x @ x.t(), dim=-1)
        return {"features": x @ torch.eye(4), "attention": attention, "metadata": [x.mean(), x.std()]}

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


DTYPES = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool complex64".split()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_preserved(backend: ArrowIPCCacheBackend, dtype: str) -> None:
    value = torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, dtype))
    backend.put_batch({"a": value})
    (found,), missing = again(backend).get_batch(["a"])
    assert missing == [] and found.dtype == value.dtype and torch.equal(found, value)


def test_special_values_and_shapes_are_preserved(backend: ArrowIPCCacheBackend) -> None:
    values = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "nan": torch.tensor([float("nan"), float("inf")]),
        "text": "héllo",
        "strided": torch.randn(3, 4).t(),
        "deep": {"a": [{"b": (torch.ones(1), 2)}]},
    }
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
