"""Outputs of cached modules: dtypes, structures, ragged rows and reduced precision."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cache_nets import Named, Pair, Returning, batch

import tensorcask as tc

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float8_e5m2, torch.float8_e4m3fn,
    torch.float8_e5m2fnuz, torch.float8_e4m3fnuz, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    """Whether two outputs have the same structure, dtypes and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
            return False
        if one.numel() == 0:
            return True
        return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
    if dataclasses.is_dataclass(one) and not isinstance(one, dict):
        names = [field.name for field in dataclasses.fields(one)]
        return all(_same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _check(folder: str, make: Callable[[torch.Tensor], Any], **options: Any) -> None:
    """A miss, a hit, a partial hit and a new handle return what the module returns."""
    module, x = Returning(make), batch(4)
    cached = tc.cache(module, folder, version="1", source=False, check_structure=False, **options)
    assert _same(cached(x, ids=[0, 1, 2, 3]), make(x))
    assert _same(cached(x, ids=[0, 1, 2, 3]), make(x))
    assert _same(cached(x[1:3], ids=[1, 2]), make(x[1:3]))
    more = batch(6)
    assert _same(cached(more, ids=[0, 1, 2, 3, 4, 5]), make(more))
    assert module.samples == 6
    cached.close()
    again = tc.cache(module, folder, version="1", source=False, check_structure=False, **options)
    assert _same(again(more, ids=[0, 1, 2, 3, 4, 5]), make(more))
    assert module.samples == 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(folder: str, dtype: torch.dtype) -> None:
    def make(x: torch.Tensor) -> torch.Tensor:
        return (x * 8).to(torch.float32).to(dtype)

    _check(folder, make)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x[:, 0],
        lambda x: {"a": x, "b": x[:, :1].long()},
        lambda x: (x, x.double()),
        lambda x: [x, x + 1, {"deep": (x, x * 2)}],
        lambda x: Pair(x, x[:, 0].bool()),
        lambda x: Named(mean=x.mean(1), spread=x),
        lambda x: {"pair": Pair(x, x), "named": Named(x, x)},
        lambda x: (x, None),
        lambda x: {"x": x, "layers": 3, "name": "net", "scale": 0.5, "flag": True},
        lambda x: x.reshape(len(x), 1, 3, 1),
        lambda x: x[:, :0],
    ],
    ids=["scalars", "dict", "tuple", "nested", "dataclass", "namedtuple", "classes", "none", "plain", "dims", "empty"],
)
def test_structures(folder: str, make: Callable[[torch.Tensor], Any]) -> None:
    _check(folder, make)


def test_ordered_dicts_and_dict_order(folder: str) -> None:
    module = Returning(lambda x: collections.OrderedDict(z=x, a=x + 1))
    cached = tc.cache(module, folder, version="1")
    for _ in range(2):
        output = cached(batch())
        assert list(output) == ["z", "a"] and torch.equal(output["a"], batch() + 1)


def test_model_outputs(folder: str) -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")

    def make(x: torch.Tensor) -> Any:
        return outputs.BaseModelOutputWithPooling(last_hidden_state=x[:, None], pooler_output=x)

    module = Returning(make)
    cached = tc.cache(module, folder, version="1")
    for _ in range(2):
        output = cached(batch())
        assert type(output) is outputs.BaseModelOutputWithPooling
        assert torch.equal(output.pooler_output, batch()) and output.hidden_states is None
        assert torch.equal(output[0], batch()[:, None])
    assert module.samples == 4


def test_numpy_outputs(folder: str) -> None:
    numpy = pytest.importorskip("numpy")
    cached = tc.cache(Returning(lambda x: x.numpy() * 2), folder, version="1")
    for _ in range(2):
        output = cached(batch())
        assert type(output) is numpy.ndarray and numpy.array_equal(output, batch().numpy() * 2)


def _ragged(x: torch.Tensor) -> list[torch.Tensor]:
    return [row[: 1 + int(row[0] * 10) % 3] for row in x]


def test_ragged_rows_as_a_list(folder: str) -> None:
    module = Returning(_ragged)
    cached = tc.cache(module, folder, version="1", lists="each")
    expected = _ragged(batch(5))
    for _ in range(2):
        output = cached(batch(5), ids=[0, 1, 2, 3, 4])
        assert _same([*output], expected)
    assert module.samples == 5


@pytest.mark.parametrize(("ragged", "filler"), [("pad", 0.0), (-1.5, -1.5)])
def test_ragged_rows_padded(folder: str, ragged: Any, filler: float) -> None:
    def longer(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.full((1 + at,), float(at)) for at in range(len(x))]

    cached = tc.cache(Returning(longer), folder, version="1", lists="each", ragged=ragged)
    for _ in range(2):
        output = cached(batch(3), ids=[0, 1, 2])
        rows = output if isinstance(output, torch.Tensor) else output[0]
        assert rows.shape == (3, 3)
        assert rows[0].tolist() == [0.0, filler, filler] and rows[2].tolist() == [2.0, 2.0, 2.0]


def test_cache_dtype(folder: str) -> None:
    cached = tc.cache(Returning(lambda x: x / 3), folder, version="1", cache_dtype=torch.float16)
    for _ in range(2):
        output = cached(batch())
        assert output.dtype == torch.float16 and torch.equal(output, (batch() / 3).half())
    restored = tc.cache(Returning(lambda x: x / 3), folder, version="1", cache_dtype="float16", restore_dtype=True)
    for _ in range(2):
        output = restored(batch())
        assert output.dtype == torch.float32 and torch.equal(output, (batch() / 3).half().float())


@pytest.mark.parametrize("codec", ["none", "zstd", "shuffle-zstd"])
def test_codecs(folder: str, codec: str) -> None:
    _check(folder, lambda x: x.repeat(1, 50), codec=codec)


@pytest.mark.parametrize("place", ["memory", "temporary"])
def test_places_without_a_folder(place: str) -> None:
    module = Returning(lambda x: x * 2)
    cached = tc.cache(module, place=place)
    assert torch.equal(cached(batch()), cached(batch()))
    assert module.samples == 4 and len(cached) == 4
    assert (cached.folder is None) == (place == "memory")


def test_map_location(folder: str) -> None:
    cached = tc.cache(Returning(lambda x: x * 2), folder, version="1", map_location="cpu")
    assert cached(batch()).device.type == "cpu"
