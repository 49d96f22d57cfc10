"""Reads of a store as operators of PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch.library", reason="custom operators")

import tensorcask as tc  # noqa: E402

ROWS = torch.rand(20, 3, 2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    with tc.open(tmp_path, "features") as store:
        store.put(range(20), ROWS)
        store.flush()
        yield store
        for name in tc.ops.registered():
            tc.ops.unregister(name)


class Head(torch.nn.Module):
    def __init__(self, gather: torch.nn.Module) -> None:
        super().__init__()
        self.gather = gather
        self.linear = torch.nn.Linear(6, 4)

    def forward(self, keys: torch.Tensor) -> torch.Tensor:
        return self.linear(self.gather(keys).flatten(1)).relu()


def test_rows_by_key_in_any_shape_of_keys(store: Any) -> None:
    gather = tc.ops.register(store, "features")
    assert torch.equal(gather(torch.tensor([3, 0, 3])), ROWS[[3, 0, 3]])
    keys = torch.arange(6, dtype=torch.int32).reshape(2, 3)
    assert torch.equal(gather(keys), ROWS[:6].reshape(2, 3, 3, 2))
    assert torch.equal(torch.ops.tensorcask.gather("features", torch.tensor(4)), ROWS[4])
    assert gather(torch.empty(0, dtype=torch.int64)).shape == (0, 3, 2)
    assert list(gather.parameters()) == []


def test_missing_keys_are_an_error_or_zeros(store: Any) -> None:
    gather = tc.ops.register(store, "features")
    with pytest.raises(tc.KeyMissingError, match="77"):
        gather(torch.tensor([1, 77]))
    zeros = tc.ops.register(store, "features", missing="zeros")
    rows = zeros(torch.tensor([1, 77]))
    assert torch.equal(rows[0], ROWS[1]) and not rows[1].any()
    rows, found = torch.ops.tensorcask.gather_found("features", torch.tensor([[1, 77]]))
    assert rows.shape == (1, 2, 3, 2) and found.tolist() == [[True, False]]


@pytest.mark.parametrize("name", ["gather", "gather_found"])
def test_the_operators_are_well_formed(store: Any, name: str) -> None:
    tc.ops.register(store, "features")
    operator = getattr(torch.ops.tensorcask, name).default
    torch.library.opcheck(operator, ("features", torch.tensor([[3, 0], [1, 2]])))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_models_contain_the_read(store: Any, backend: str) -> None:
    if backend == "inductor" and not can_compile():
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    head = Head(tc.ops.register(store, "features"))
    compiled = torch.compile(head, fullgraph=True, backend=backend)
    for keys in (torch.tensor([1, 2, 3]), torch.tensor([19, 0, 7])):
        result = compiled(keys)
        assert torch.allclose(result, head(keys))
        result.sum().backward()
    # The read is not folded into the graph: it sees rows that are put later.
    store.put([1], torch.zeros(1, 3, 2))
    assert torch.allclose(compiled(torch.tensor([1, 2, 3])), head(torch.tensor([1, 2, 3])))
    with pytest.raises(tc.KeyMissingError):
        compiled(torch.tensor([1, 2, 1000]))


def can_compile() -> bool:
    try:
        torch.compile(lambda x: x + 1, backend="inductor")(torch.zeros(2))
    except Exception:  # noqa: BLE001 - whatever it lacks, inductor is not there
        return False
    return True


def test_exported_programs_contain_the_read(store: Any, tmp_path: Path) -> None:
    head = Head(tc.ops.register(store, "features")).eval()
    batch = torch.export.Dim("batch", min=1, max=1000)
    program = torch.export.export(head, (torch.tensor([1, 2, 3]),), dynamic_shapes=({0: batch},))
    assert "tensorcask.gather" in str(program.graph)
    keys = torch.tensor([5, 6, 7, 8, 9])
    assert torch.allclose(program.module()(keys), head(keys))

    torch.export.save(program, tmp_path / "head.pt2")
    torch.save(head(keys), tmp_path / "expected.pt")
    script = f"""
import torch, tensorcask as tc
store = tc.open({str(tmp_path)!r}, "features", mode="r")
tc.ops.register(store, "features")
program = torch.export.load({str(tmp_path / "head.pt2")!r})
result = program.module()(torch.tensor([5, 6, 7, 8, 9]))
assert torch.allclose(result, torch.load({str(tmp_path / "expected.pt")!r})), result
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


def test_names_are_checked(store: Any, tmp_path: Path) -> None:
    with pytest.raises(tc.InvalidError, match="no store is registered under the name 'other'"):
        torch.ops.tensorcask.gather("other", torch.tensor([1]))
    with pytest.raises(tc.InvalidError, match="missing"):
        tc.ops.register(store, "features", missing="skip")
    tc.ops.register(store, "features")
    assert tc.ops.registered() == {"features": store}
    with tc.open(tmp_path, "more") as more:
        more.put([1], torch.rand(1, 3, 2))
        tc.ops.register(more, "features")
        assert tc.ops.registered() == {"features": more}
    with tc.open(tmp_path, "other") as other:
        other.put([1], torch.rand(1, 5))
        with pytest.raises(tc.InvalidError, match="another name"):
            tc.ops.register(other, "features")
    tc.ops.unregister("features")
    with pytest.raises(tc.InvalidError):
        tc.ops.unregister("features")


def test_only_stores_of_tensors_under_integers_can_be_registered(store: Any, tmp_path: Path) -> None:
    with tc.open(tmp_path, "strings") as strings:
        strings.put(["a"], torch.rand(1, 2))
        with pytest.raises(tc.InvalidError, match="integer keys"):
            tc.ops.register(strings, "strings")
    with tc.open(tmp_path, "trees") as trees:
        trees.put([1], {"a": torch.rand(1, 2)})
        with pytest.raises(tc.InvalidError, match="single tensors"):
            tc.ops.register(trees, "trees")
    with pytest.raises(tc.InvalidError, match="not torch.float32 rows of shape"):
        tc.ops.register(store, "features", shape=[3])


def test_an_empty_store_needs_a_shape_and_a_dtype(tmp_path: Path) -> None:
    with tc.open(tmp_path, "empty") as store:
        with pytest.raises(tc.InvalidError, match="is empty"):
            tc.ops.register(store, "empty")
        gather = tc.ops.register(store, "empty", shape=[2], dtype=torch.float16, missing="zeros")
        assert torch.equal(gather(torch.tensor([1, 2])), torch.zeros(2, 2, dtype=torch.float16))
        store.put([1], torch.ones(1, 2, dtype=torch.float16))
        assert gather(torch.tensor([1, 2])).tolist() == [[1, 1], [0, 0]]
        tc.ops.unregister("empty")
        # A graph that was compiled for other rows must not read these.
        with tc.open(tmp_path, "late") as late:
            gather = tc.ops.register(late, "late", shape=[2], dtype=torch.float32)
            late.put([1], torch.ones(1, 3))
            with pytest.raises(tc.InvalidError, match="as registered"):
                gather(torch.tensor([1]))
            tc.ops.unregister("late")
