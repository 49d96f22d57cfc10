"""Cached modules within torch's transforms: compile, export, tracing, vmap, autocast, distributed training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_nets import Net, batch, net
from torch import nn

import tensorcask as tc


class Model(nn.Module):
    """A backbone and a head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x * 2)) + 1


def test_wrapping_does_not_import_the_compiler(run_python: Any) -> None:
    code = (
        "import sys, json, torch, tensorcask as tc\n"
        "cached = tc.cache(torch.nn.Linear(2, 2), freeze=True)\n"
        "cached(torch.ones(2, 2))\n"
        "print(json.dumps('torch._dynamo' in sys.modules))\n"
    )
    assert run_python(code) is False


def test_compiled_models_break_the_graph_at_the_lookup(folder: str) -> None:
    module = net()
    model = Model(tc.cache(module, folder))
    expected = model(batch())
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    for start in (0, 0, 7):
        output = compiled(batch(start=start))
        torch.testing.assert_close(output, model(batch(start=start)))
    output.sum().backward()
    assert model.head.weight.grad is not None
    torch.testing.assert_close(compiled(batch()), expected)
    assert module.samples == 8 and len(model.backbone) == 8
    # What is around the lookup is compiled, and the lookup and the module are not.
    assert len(graphs) == 2


def test_compiled_decorated_modules_and_functions(folder: str) -> None:
    calls = []

    @tc.cache(folder, module_id="double")
    def double(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x * 2

    @tc.cache(folder, freeze=True)
    class Backbone(Net):
        pass

    backbone = Backbone()

    def both(x: torch.Tensor) -> torch.Tensor:
        return backbone(double(x + 1)) + 1

    torch._dynamo.reset()
    compiled = torch.compile(both, backend="eager")
    for _ in range(3):
        torch.testing.assert_close(compiled(batch()), both(batch()))
    assert calls == [4] and backbone.samples == 4


@pytest.mark.parametrize("strict", [False, True])
def test_export_contains_the_module_itself(folder: str, strict: bool) -> None:
    model = Model(tc.cache(net(), folder)).requires_grad_(False)
    expected = model(batch())
    exported = torch.export.export(model, (batch(),), strict=strict)
    torch.testing.assert_close(exported.module()(batch()), expected)
    other = batch(start=9)
    torch.testing.assert_close(exported.module()(other), model(other))
    assert any("linear" in str(node.target) for node in exported.graph.nodes)
    assert "backbone.linear.weight" in exported.state_dict


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_contains_the_module_itself(folder: str) -> None:
    model = Model(tc.cache(net(), folder)).requires_grad_(False)
    traced = torch.jit.trace(model, batch())
    other = batch(start=9)
    torch.testing.assert_close(traced(other), model(other))


def test_fx_trace_contains_the_module_itself(folder: str) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    cached = tc.cache(Plain(), folder, freeze=True)
    graph = torch.fx.symbolic_trace(Model(cached))
    model = Model(cached)
    model.head.load_state_dict(graph.head.state_dict())
    torch.testing.assert_close(graph(batch()), model(batch()))
    assert len(cached) == 4


def test_vmap_and_grad_run_the_module_itself(folder: str) -> None:
    module = tc.cache(nn.Linear(3, 2), folder, freeze=True)
    stacked = torch.stack([batch(), batch(start=4)])
    expected = torch.stack([module.unwrap()(x) for x in stacked])
    torch.testing.assert_close(torch.vmap(module)(stacked), expected)
    gradient = torch.func.grad(lambda x: module(x).sum())(batch())
    torch.testing.assert_close(gradient, module.unwrap().weight.sum(0).expand(4, 3))
    assert len(module) == 0


def test_fake_and_meta_tensors_run_the_module_itself(folder: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    cached = tc.cache(nn.ReLU(), folder)
    assert cached(torch.ones(4, 3, device="meta")).shape == (4, 3)
    with FakeTensorMode():
        assert cached(torch.ones(4, 3)).shape == (4, 3)
    assert len(cached) == 0


def test_autocast_is_part_of_the_key(folder: str) -> None:
    module, x = net(), batch()
    cached = tc.cache(module, folder)
    plain = cached(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first, second = cached(x), cached(x)
        assert list(cached.contains(x)) == [True] * 4
        expected = module(x)
        rows = cached.lazy([1, 2], lambda positions: x[positions])
    assert first.dtype == torch.bfloat16 and torch.equal(first, second) and torch.equal(first, expected)
    assert rows.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.float16):
        assert cached(x).dtype == torch.float16
    assert torch.equal(cached(x), plain) and cached.stats()["hits"] == 8
    assert not any(cached.contains(ids=[1, 2]))


def test_ids_from_does_not_see_autocast(folder: str) -> None:
    cached = tc.cache(net(), folder, ids_from=lambda x: list(range(len(x))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached(batch())
        cached(batch(start=1))
    assert cached.stats()["hits"] == 4


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(folder: str) -> None:
    module = net()
    model = nn.parallel.DistributedDataParallel(Model(tc.cache(module, folder)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(batch()).sum().backward()
        optimizer.step()
    assert module.samples == 4 and model.module.backbone.stats()["hits"] == 8


@pytest.mark.usefixtures("process_group")
def test_the_rank_of_the_process_group_is_used(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    cached = tc.cache(net(), folder)
    cached(batch())
    cached.flush()
    names = [name for _, _, files in os.walk(cached.folder or "") for name in files]
    assert any(name.startswith("0003") for name in names)
